"""The diffusion transformer of MDLM, in its public checkpoint layout. App. E.1, Tables 3-4.

Pre-norm transformer with rotary positions and adaptive layer norm on the noise level (Peebles & Xie 2023). Parameter
names and shapes are those of the public MDLM, Duo and DiDi-Instruct checkpoints, whose state dicts load unchanged.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from didi.errors import UsageError
from didi.models.denoiser import Simplex, Tokens
from didi.models.layers import Embedding, LayerNorm, LocalConv, NoiseEmbedding, Rotary, modulate, rotate, zero_linear
from didi.models.shallow_copy import Network, shallow_copy

MLP_RATIO = 4


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a diffusion transformer.

    Attributes:
        vocab_size: number of symbols V, the mask included.
        mask_id: index of [MASK], the last symbol in the public checkpoints; None for a network of uniform-state
            diffusion.
        length: context length L.
        hidden_size: width d.
        num_blocks: number of transformer blocks.
        num_heads: attention heads; ``hidden_size / num_heads`` is even.
        cond_dim: width of the noise-level conditioning.
        dropout: dropout rate of both residual branches while in training mode.
        is_time_conditioned: whether samplers and objectives pass the noise level (MDLM: no).
        conv_radius: neighbours on either side that a residual depthwise convolution before each block reads; 0 for no
            convolution, as in the public checkpoint layout.
        is_budget_conditioned: whether the network can read the number of moves of the sampler that uses it
            (``DiTTrunk.at_budget``). The public checkpoint layout has no weights for it.
        num_codes: size C of the alphabet of latent codes, one code for each position (``models.latent``); 0 for no
            latent codes, as in the public checkpoint layout.
    """

    vocab_size: int
    mask_id: int | None
    length: int
    hidden_size: int = 768
    num_blocks: int = 12
    num_heads: int = 12
    cond_dim: int = 128
    dropout: float = 0.0
    is_time_conditioned: bool = False
    conv_radius: int = 0
    is_budget_conditioned: bool = False
    num_codes: int = 0

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % (2 * self.num_heads):
            raise UsageError(
                f"hidden_size is a multiple of 2 * num_heads (rotary pairs); got {self.hidden_size} and "
                f"{self.num_heads} heads"
            )
        if self.conv_radius < 0:
            raise UsageError(f"conv_radius is 0 or more; got {self.conv_radius}")
        if self.num_codes < 0 or self.num_codes == 1:
            raise UsageError(f"num_codes is 2 or more, or 0 for none; got {self.num_codes}")
        if self.mask_id is not None and not 0 <= self.mask_id < self.vocab_size:
            raise UsageError(f"mask_id lies in [0, vocab_size); got {self.mask_id} and {self.vocab_size}")


class Block(nn.Module):
    """Attention and feed-forward layers, both modulated and gated by the noise level (adaLN-zero)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.num_heads = config.num_heads
        self.conv = LocalConv(dim, config.conv_radius) if config.conv_radius else nn.Identity()
        self.norm1 = LayerNorm(dim)
        self.attn_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attn_out = nn.Linear(dim, dim, bias=False)
        self.norm2 = LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, MLP_RATIO * dim), nn.GELU(approximate="tanh"), nn.Linear(MLP_RATIO * dim, dim)
        )
        self.adaLN_modulation = zero_linear(config.cond_dim, 6 * dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        cond: Float[Tensor, "c k"],
        rotary: tuple[Tensor, Tensor],
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """One block; ``cond`` has one row for each sequence, or one row for all."""
        if attention_mask is not None:  # the convolution reads zeros at padding, as beyond the ends
            x = x * attention_mask[..., None]
        x = self.conv(x)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(cond)[:, None].chunk(6, dim=-1)
        qkv = self.attn_qkv(modulate(self.norm1(x), shift_a, scale_a))
        qkv = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotate(qkv[:2], *(table.to(qkv.dtype) for table in rotary))
        is_read = None if attention_mask is None else attention_mask[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, qkv[2], attn_mask=is_read)
        x = torch.addcmul(x, gate_a, self.dropout(self.attn_out(attended.transpose(1, 2).flatten(2))))
        return torch.addcmul(x, gate_m, self.dropout(self.mlp(modulate(self.norm2(x), shift_m, scale_m))))


class FinalLayer(nn.Module):
    """The last modulated norm and the vocabulary head."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = LayerNorm(config.hidden_size)
        self.linear = zero_linear(config.hidden_size, config.vocab_size)
        self.adaLN_modulation = zero_linear(config.cond_dim, 2 * config.hidden_size)

    def forward(self, x: Float[Tensor, "b l d"], cond: Float[Tensor, "c k"]) -> Float[Tensor, "b l d"]:
        """The modulated norm; ``linear`` is the head."""
        shift, scale = self.adaLN_modulation(cond)[:, None].chunk(2, dim=-1)
        return modulate(self.norm_final(x), shift, scale)


class DiTTrunk(nn.Module):
    """Embedding and transformer blocks, without an output layer; a ``denoiser.Trunk``.

    Attributes:
        budget: number of moves that the network is conditioned on, set by ``at_budget``; None if it is not.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_embed = Embedding(config.vocab_size, config.hidden_size)
        self.sigma_map = NoiseEmbedding(config.cond_dim)
        self.rotary_emb = Rotary(config.hidden_size // config.num_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        if config.is_budget_conditioned:
            self.budget_map = NoiseEmbedding(config.cond_dim, is_zero=True)
        self.keeps_activations = True
        self.budget: int | None = None

    @property
    def vocab_size(self) -> int:
        """Number of symbols, the mask included."""
        return self.config.vocab_size

    @property
    def mask_id(self) -> int | None:
        """Index of [MASK]; None in a network of a process without one."""
        return self.config.mask_id

    @property
    def length(self) -> int:
        """Context length L."""
        return self.config.length

    @property
    def is_time_conditioned(self) -> bool:
        """Whether callers pass the noise level."""
        return self.config.is_time_conditioned

    @property
    def hidden_size(self) -> int:
        """Width d."""
        return self.config.hidden_size

    def at_budget(self: Network, num_moves: int | None) -> Network:
        """The network conditioned on a sampler of ``num_moves`` moves: itself, or a copy that shares all weights.

        Args:
            num_moves: 1 or more; None for no conditioning. A network without ``is_budget_conditioned`` is returned
                unchanged for every number.

        Raises:
            UsageError: the network reads the number of moves, and ``num_moves`` is less than 1.
        """
        network: Any = self
        if not network.config.is_budget_conditioned or num_moves == network.budget:
            return network
        if num_moves is not None and num_moves < 1:
            raise UsageError(f"a network is conditioned on 1 move or more; got {num_moves}")
        conditioned = shallow_copy(network)
        conditioned.budget = num_moves
        return conditioned

    def embed(self, inputs: Int[Tensor, "*b"] | Float[Tensor, "*b v"]) -> Float[Tensor, "*b d"]:
        """See ``denoiser.Trunk.embed``."""
        return self.vocab_embed(inputs)

    def hidden_states(
        self,
        embedded: Float[Tensor, "b l d"],
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """See ``denoiser.Trunk.hidden_states``; None for ``sigma`` is noise level 0."""
        return self.conditioned(embedded, sigma, attention_mask)[0]

    def conditioned(
        self,
        embedded: Float[Tensor, "b l d"],
        sigma: Float[Tensor, " b"] | None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "c k"]]:
        """Hidden states after the last block, and the conditioning, which the output layer also reads."""
        x = embedded
        cond = self.sigma_map(x.new_zeros(1) if sigma is None else sigma)
        if self.budget is not None:
            cond = cond + self.budget_map(torch.full((1,), math.log2(self.budget), device=x.device))
        cond = F.silu(cond)
        rotary = self.rotary_emb(x.shape[1])
        for block in self.blocks:
            if self.keeps_activations or not torch.is_grad_enabled():
                x = block(x, cond, rotary, attention_mask)
            else:  # keeps only the input of the block (``LoopConfig.activation_checkpointing``)
                x = checkpoint(block, x, cond, rotary, attention_mask, use_reentrant=False)
        return x, cond


class DiT(DiTTrunk):
    """Diffusion transformer that predicts clean tokens; see ``denoiser.Denoiser`` for the contract."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.output_layer = FinalLayer(config)
        if config.num_codes:
            self.code_embed = Embedding(config.num_codes, config.hidden_size)

    def features(
        self,
        inputs: Tokens | Simplex,
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        codes: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """See ``Denoiser.features``; the embedding of the latent code is added to the token embedding.

        Raises:
            UsageError: the network reads latent codes, and ``codes`` is None.
        """
        embedded = self.embed(inputs)
        if self.config.num_codes:
            if codes is None:
                raise UsageError(
                    f"this network reads a latent code at each position (num_codes {self.config.num_codes}), which "
                    "only ancestral, tau-leaping and guided sampling draw: use one of these"
                )
            embedded = embedded + self.code_embed(codes)
        return self.features_of_embeddings(embedded, sigma, attention_mask)

    def features_of_embeddings(
        self,
        embedded: Float[Tensor, "b l d"],
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """As ``features``, from embeddings, such as those of ``embed``."""
        return self.output_layer(*self.conditioned(embedded, sigma, attention_mask))

    def head(self, features: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows v"]:
        """See ``Denoiser.head``."""
        linear = self.output_layer.linear
        is_few_rows = features.ndim == 2 and len(features) < features.shape[1] and features.device.type == "cpu"
        if is_few_rows and not torch.is_grad_enabled():
            # The product of transposed matrices is faster: 64 rows of owt-169m take 52 ms instead of 78.
            return torch.addmm(linear.bias[:, None], linear.weight, features.t()).t().contiguous()
        logits: Tensor = linear(features)
        return logits

    def forward(
        self,
        inputs: Tokens | Simplex,
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l v"]:
        """Raw logits at every position; arguments are those of ``Denoiser.features``."""
        return self.head(self.features(inputs, sigma, attention_mask))
