"""ESM-2 (Lin et al. 2023), the network of DPLM (Wang et al. 2024), as a masked-diffusion denoiser of proteins.

Pre-norm transformer with rotary positions and without a time input. It computes the same function as ``EsmForMaskedLM``
of ``transformers``; ``models.esm2_layout`` reads the public checkpoints.
"""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from didi.errors import UsageError
from didi.models.discriminator import SHAPES, Output
from didi.models.layers import LocalConv, Rotary, rotate
from didi.models.proteins import Head, ProteinConfig, ProteinDenoiser, ProteinTrunk

TRAINING_MASK_RATIO = 0.15 * 0.8
"""Share of masks in the training of ESM-2; token dropout uses it."""


@dataclass(frozen=True)
class Esm2Config(ProteinConfig):
    """Shape of an ESM-2; the defaults are the 150M network.

    Positions are rotary, so that no weight depends on ``length``. Dropout acts on both residual branches.

    Attributes:
        conv_radius: neighbours on either side that a residual depthwise convolution before each block reads; 0 for no
            convolution, as in the public checkpoints.
        has_token_dropout: whether embeddings of masks are zero and other embeddings are divided by the share of visible
            positions in the sequence, relative to that in ESM-2's training.

    Raises:
        UsageError: the heads do not fit the width, or a symbol is not in the vocabulary.
    """

    has_token_dropout: bool = True
    conv_radius: int = 0

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % (2 * self.num_heads):
            raise UsageError(
                f"hidden_size is a multiple of 2 * num_heads (rotary pairs); got {self.hidden_size} and "
                f"{self.num_heads} heads"
            )
        if self.conv_radius < 0:
            raise UsageError(f"conv_radius is 0 or more; got {self.conv_radius}")
        super().__post_init__()


SIZES = {
    "150m": Esm2Config(hidden_size=640, num_blocks=30, num_heads=20),
    "650m": Esm2Config(hidden_size=1280, num_blocks=33, num_heads=20),
    "3b": Esm2Config(hidden_size=2560, num_blocks=36, num_heads=40),
}
"""Shapes of published ESM-2 and DPLM networks, by number of parameters."""


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


class Esm2Trunk(ProteinTrunk):
    """Embedding, transformer blocks and the last layer norm; a ``denoiser.Trunk``."""

    config: Esm2Config

    def __init__(self, config: Esm2Config) -> None:
        super().__init__(config)
        self.rotary_emb = Rotary(config.hidden_size // config.num_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm_final = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)

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
        normed: Tensor = self.norm_final(self.after_blocks(x, self.rotary_emb(x.shape[1]), attention_mask))
        return normed

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


class Esm2(Esm2Trunk, ProteinDenoiser):
    """ESM-2 that predicts residues; see ``denoiser.Denoiser`` for the contract."""

    def __init__(self, config: Esm2Config) -> None:
        super().__init__(config)
        self.output_layer = Head(config)


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
