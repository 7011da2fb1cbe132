"""BERT (Devlin et al. 2019), the network of AntiBERTy (Ruffolo et al. 2021), as a masked-diffusion denoiser.

Post-norm transformer with learned positions and without a time input. It computes the same function as
``BertForMaskedLM`` of ``transformers`` on a single segment; ``models.bert_layout`` reads the public checkpoint.
"""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from didi.errors import UsageError
from didi.models.discriminator import SHAPES, Output
from didi.models.proteins import ALPHABET, MASK_ID, RESIDUES, Head, ProteinConfig, ProteinDenoiser, ProteinTrunk


@dataclass(frozen=True)
class BertConfig(ProteinConfig):
    """Shape of a BERT of proteins; the defaults are those of AntiBERTy.

    ``length`` is the number of learned positions, and dropout acts on the embeddings and on both residual branches.
    Only the 20 standard residues are drawn, since the vocabulary of AntiBERTy has no others.

    Raises:
        UsageError: the heads do not fit the width, or a symbol is not in the vocabulary.
    """

    length: int = 512
    hidden_size: int = 512
    num_blocks: int = 8
    num_heads: int = 8
    layer_norm_epsilon: float = 1e-12
    excluded_ids: tuple[int, ...] = tuple(
        number for number, name in enumerate(ALPHABET) if name not in RESIDUES and number != MASK_ID
    )

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise UsageError(
                f"hidden_size is a multiple of num_heads; got {self.hidden_size} and {self.num_heads} heads"
            )
        super().__post_init__()


class Block(nn.Module):
    """Attention and feed-forward layers, each followed by a layer norm of its sum with the input."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        dim, epsilon = config.hidden_size, config.layer_norm_epsilon
        inner = config.inner_size or 4 * dim
        self.num_heads = config.num_heads
        self.attn_qkv = nn.Linear(dim, 3 * dim)
        self.attn_out = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(dim, epsilon)
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))
        self.norm2 = nn.LayerNorm(dim, epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "b l d"], attention_mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l d"]:
        """One block."""
        query, key, value = self.attn_qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        is_read = None if attention_mask is None else attention_mask[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=is_read)
        x = self.norm1(x + self.dropout(self.attn_out(attended.transpose(1, 2).flatten(2))))
        normed: Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return normed


class BertTrunk(ProteinTrunk):
    """Embeddings of tokens and positions, and transformer blocks; a ``denoiser.Trunk``."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.position_embed = nn.Parameter(torch.empty(config.length, config.hidden_size))
        nn.init.normal_(self.position_embed, std=0.02)
        self.norm_embed = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))

    def hidden_states(
        self,
        embedded: Float[Tensor, "b l d"],
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """See ``denoiser.Trunk.hidden_states``; ``sigma`` is not read.

        Raises:
            UsageError: there are more positions than learned ones.
        """
        del sigma
        if (num := embedded.shape[1]) > self.length:
            raise UsageError(f"a sequence has at most {self.length} positions, the learned ones; got {num}: shorten it")
        x = self.dropout(self.norm_embed(embedded + self.position_embed[:num]))
        return self.after_blocks(x, attention_mask)


class Bert(BertTrunk, ProteinDenoiser):
    """BERT that predicts residues; see ``denoiser.Denoiser`` for the contract."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.output_layer = Head(config)


@dataclass(frozen=True)
class BertDiscriminatorConfig(BertConfig):
    """Settings of a discriminator with the trunk of a BERT.

    Attributes:
        output: ``sequence`` gives one logit for each protein, ``token`` one for each position.
    """

    output: Output = "sequence"

    @classmethod
    def for_denoiser(cls, shape: BertConfig, *, output: Output, is_time_conditioned: bool) -> "BertDiscriminatorConfig":
        """See ``DiscriminatorShape.for_denoiser``; ``is_time_conditioned`` is ignored: the trunk has no time input."""
        del is_time_conditioned
        return cls(**asdict(shape) | {"dropout": 0.0}, output=output)

    def make_trunk(self) -> BertTrunk:
        """See ``DiscriminatorShape.make_trunk``."""
        return BertTrunk(self)


SHAPES[BertConfig] = BertDiscriminatorConfig  # registered here, because discriminator.py cannot import this module
