"""ESM-2 (Lin et al. 2023), the network of DPLM (Wang et al. 2024), as a masked-diffusion denoiser of proteins.

Pre-norm transformer with rotary positions and without a time input. It computes the same function as ``EsmForMaskedLM``
of ``transformers``; ``models.esm2_layout`` reads the public checkpoints.
"""

from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from didi.errors import UsageError
from didi.models.denoiser import Simplex, Tokens
from didi.models.discriminator import SHAPES, Output
from didi.models.layers import Embedding, LocalConv, Rotary, rotate

Network = TypeVar("Network", bound=nn.Module)

ALPHABET = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
"""The vocabulary of the public checkpoints; the index of a token is its id."""
BEGIN_ID, PAD_ID, END_ID, MASK_ID = (ALPHABET.index(name) for name in ("<cls>", "<pad>", "<eos>", "<mask>"))
EXCLUDED_IDS = tuple(number for number, name in enumerate(ALPHABET[:-1]) if not name.isalpha() or name == "X")
"""Symbols, except the mask, that are no residue or an unknown residue; they are never drawn."""
TRAINING_MASK_RATIO = 0.15 * 0.8
"""Share of masks in the training of ESM-2; token dropout uses it."""


@dataclass(frozen=True)
class Esm2Config:
    """Shape of an ESM-2; the defaults are the 150M network.

    Attributes:
        vocab_size: number of symbols V, the mask included.
        mask_id: index of the mask.
        length: context length L in positions, the begin and end symbols included; rotary positions have no limit.
        hidden_size: width d.
        num_blocks: number of transformer blocks.
        num_heads: attention heads; ``hidden_size / num_heads`` is even.
        inner_size: width of the MLP; None for four times ``hidden_size``.
        dropout: dropout rate of both residual branches while in training mode.
        layer_norm_epsilon: epsilon of layer normalisation.
        is_tied: whether head and token embedding share one matrix.
        conv_radius: neighbours on either side that a residual depthwise convolution before each block reads; 0 for no
            convolution, as in the public checkpoints.
        has_token_dropout: whether embeddings of masks are zero and other embeddings are scaled by the share of visible
            positions in the sequence, relative to that in ESM-2's training.
        begin_id: symbol before the first residue; None if there is none. It is never masked and never drawn.
        end_id: symbol after the last residue, likewise.
        pad_id: symbol of padding, likewise.
        excluded_ids: further symbols, besides the mask, whose logits are -inf.

    Raises:
        UsageError: the heads do not fit the width, or a symbol is not in the vocabulary.
    """

    vocab_size: int = len(ALPHABET)
    mask_id: int = MASK_ID
    length: int = 1024
    hidden_size: int = 640
    num_blocks: int = 30
    num_heads: int = 20
    inner_size: int | None = None
    dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    is_tied: bool = True
    has_token_dropout: bool = True
    begin_id: int | None = BEGIN_ID
    end_id: int | None = END_ID
    pad_id: int = PAD_ID
    excluded_ids: tuple[int, ...] = EXCLUDED_IDS
    conv_radius: int = 0

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % (2 * self.num_heads):
            raise UsageError(
                f"hidden_size is a multiple of 2 * num_heads (rotary pairs); got {self.hidden_size} and "
                f"{self.num_heads} heads"
            )
        if self.conv_radius < 0:
            raise UsageError(f"conv_radius is 0 or more; got {self.conv_radius}")
        symbols = {self.mask_id, self.pad_id, *self.excluded_ids, *self.frame_ids}
        if not all(0 <= symbol < self.vocab_size for symbol in symbols) or len(symbols) == self.vocab_size:
            raise UsageError(
                f"special symbols lie in [0, vocab_size) and are not all of them; got {sorted(symbols)} and "
                f"{self.vocab_size}"
            )

    @property
    def frame_ids(self) -> tuple[int, ...]:
        """The begin and the end symbol, without None."""
        return tuple(symbol for symbol in (self.begin_id, self.end_id) if symbol is not None)


SIZES = {
    "150m": Esm2Config(hidden_size=640, num_blocks=30, num_heads=20),
    "650m": Esm2Config(hidden_size=1280, num_blocks=33, num_heads=20),
    "3b": Esm2Config(hidden_size=2560, num_blocks=36, num_heads=40),
}
"""The sizes of ESM-2 for which DPLM was published too."""


class Block(nn.Module):
    """Attention and feed-forward layers, each after a layer norm."""

    def __init__(self, config: Esm2Config) -> None:
        super().__init__()
        dim, epsilon = config.hidden_size, config.layer_norm_epsilon
        inner = config.inner_size or 4 * dim
        self.num_heads = config.num_heads
        self.conv = LocalConv(dim, config.conv_radius) if config.conv_radius else None
        self.norm1 = nn.LayerNorm(dim, epsilon)
        self.attn_qkv = nn.Linear(dim, 3 * dim)
        self.attn_out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, epsilon)
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        rotary: tuple[Tensor, Tensor],
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """One block."""
        if self.conv is not None:  # the convolution reads zeros at padding, as beyond the ends
            x = self.conv(x if attention_mask is None else x * attention_mask[..., None])
        qkv = self.attn_qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotate(qkv[:2], *(table.to(qkv.dtype) for table in rotary))
        is_read = None if attention_mask is None else attention_mask[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, qkv[2], attn_mask=is_read)
        x = x + self.dropout(self.attn_out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Head(nn.Module):
    """The language-model head: a dense layer, GELU, a layer norm and the vocabulary matrix."""

    def __init__(self, config: Esm2Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.linear = None if config.is_tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, features: Float[Tensor, "*rows d"], embedding: Float[Tensor, "v d"]) -> Float[Tensor, "*rows v"]:
        """Logits; ``embedding`` is the vocabulary matrix of a tied head."""
        matrix = embedding if self.linear is None else self.linear.weight
        return F.linear(self.norm(F.gelu(self.dense(features))), matrix, self.bias)


class Esm2Trunk(nn.Module):
    """Embedding, transformer blocks and the last layer norm; a ``denoiser.Trunk``."""

    def __init__(self, config: Esm2Config) -> None:
        super().__init__()
        self.config = config
        self.vocab_embed = Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = Rotary(config.hidden_size // config.num_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm_final = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.keeps_activations = True

    @property
    def vocab_size(self) -> int:
        """Number of symbols, the mask included."""
        return self.config.vocab_size

    @property
    def mask_id(self) -> int:
        """Index of the mask."""
        return self.config.mask_id

    @property
    def length(self) -> int:
        """Context length L, the begin and end symbols included."""
        return self.config.length

    @property
    def is_time_conditioned(self) -> bool:
        """False: there is no time input."""
        return False

    @property
    def hidden_size(self) -> int:
        """Width d."""
        return self.config.hidden_size

    def embed(self, inputs: Int[Tensor, "*b"] | Float[Tensor, "*b v"]) -> Float[Tensor, "*b e"]:
        """See ``denoiser.Trunk.embed``; with token dropout the last column is the probability of the mask."""
        table: Tensor = self.vocab_embed.embedding
        if self.config.has_token_dropout:
            is_mask = (torch.arange(len(table), device=table.device) == self.mask_id)[:, None]
            table = torch.cat([table.masked_fill(is_mask, 0.0), is_mask.to(table.dtype)], dim=1)
        if inputs.is_floating_point():
            expected: Tensor = inputs.to(table.dtype) @ table
            return expected.to(table.dtype)
        return F.embedding(inputs, table)

    def hidden_states(
        self,
        embedded: Float[Tensor, "b l e"],
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """See ``denoiser.Trunk.hidden_states``; ``sigma`` is not read."""
        del sigma
        x = self._token_dropped(embedded, attention_mask) if self.config.has_token_dropout else embedded
        rotary = self.rotary_emb(x.shape[1])
        for block in self.blocks:
            if self.keeps_activations or not torch.is_grad_enabled():
                x = block(x, rotary, attention_mask)
            else:
                x = checkpoint(block, x, rotary, attention_mask, use_reentrant=False)
        return self.norm_final(x)

    def at_budget(self: Network, num_moves: int | None) -> Network:
        """The network itself, as it does not read the number of moves."""
        del num_moves
        return self

    @staticmethod
    def _token_dropped(
        embedded: Float[Tensor, "b l e"], attention_mask: Bool[Tensor, "b l"] | None
    ) -> Float[Tensor, "b l d"]:
        """Embeddings divided by the share of visible positions relative to that in ESM-2's training."""
        x, is_mask = embedded[..., :-1], embedded[..., -1]
        is_real = torch.ones_like(is_mask) if attention_mask is None else attention_mask.to(is_mask)
        num_real = is_real.sum(1)
        num_visible = (num_real - (is_mask * is_real).sum(1)).clamp(min=1)  # if 0, all embeddings are zero
        return x * ((1 - TRAINING_MASK_RATIO) * num_real / num_visible)[:, None, None]


class Esm2(Esm2Trunk):
    """ESM-2 that predicts residues; see ``denoiser.Denoiser`` for the contract."""

    def __init__(self, config: Esm2Config) -> None:
        super().__init__(config)
        self.output_layer = Head(config)

    def features(
        self,
        inputs: Tokens | Simplex,
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """See ``Denoiser.features``."""
        return self.features_of_embeddings(self.embed(inputs), sigma, attention_mask)

    def features_of_embeddings(
        self,
        embedded: Float[Tensor, "b l e"],
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """As ``features``, from embeddings, such as those of ``embed``."""
        return self.hidden_states(embedded, sigma, attention_mask)

    def head(self, features: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows v"]:
        """See ``Denoiser.head``; -inf at the mask and at ``excluded_ids``, so that no process draws them."""
        excluded = torch.tensor([self.mask_id, *self.config.excluded_ids], device=features.device)
        logits: Tensor = self.output_layer(features, self.vocab_embed.embedding)
        return logits.index_fill(-1, excluded, -torch.inf)

    def forward(
        self,
        inputs: Tokens | Simplex,
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l v"]:
        """Logits at every position; arguments are those of ``Denoiser.features``."""
        return self.head(self.features(inputs, sigma, attention_mask))


@dataclass(frozen=True)
class Esm2DiscriminatorConfig(Esm2Config):
    """Settings of a discriminator with the trunk of an ESM-2.

    Attributes:
        output: ``sequence`` gives one logit for each protein (App. F.6), ``token`` one for each position.
    """

    output: Output = "sequence"

    @classmethod
    def for_denoiser(cls, shape: Esm2Config, *, output: Output, is_time_conditioned: bool) -> "Esm2DiscriminatorConfig":
        """See ``DiscriminatorShape.for_denoiser``; ``is_time_conditioned`` is ignored: the trunk has no time input."""
        del is_time_conditioned
        return cls(**asdict(shape) | {"dropout": 0.0}, output=output)

    def make_trunk(self) -> Esm2Trunk:
        """See ``DiscriminatorShape.make_trunk``."""
        return Esm2Trunk(self)


SHAPES[Esm2Config] = Esm2DiscriminatorConfig  # registered here, because discriminator.py cannot import this module
