"""Networks of proteins: their vocabulary, which is that of ESM-2, their settings and their common parts."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from didi.errors import UsageError
from didi.models.denoiser import Simplex, Tokens
from didi.models.layers import Embedding

Network = TypeVar("Network", bound=nn.Module)

ALPHABET = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
"""The vocabulary of ESM-2; the index of a token is its id."""
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
"""The 20 standard amino acids."""
BEGIN_ID, PAD_ID, END_ID, MASK_ID = (ALPHABET.index(name) for name in ("<cls>", "<pad>", "<eos>", "<mask>"))
EXCLUDED_IDS = tuple(number for number, name in enumerate(ALPHABET[:-1]) if not name.isalpha() or name == "X")
"""Symbols, except the mask, that are no residue or an unknown residue; they are never drawn."""


@dataclass(frozen=True)
class ProteinConfig:
    """Settings that networks of proteins share; the defaults are those of ESM-2 150M.

    Attributes:
        vocab_size: number of symbols V, the mask included.
        mask_id: index of the mask.
        length: context length L in positions, the begin and end symbols included.
        hidden_size: width d.
        num_blocks: number of transformer blocks.
        num_heads: attention heads.
        inner_size: width of the MLP; None for four times ``hidden_size``.
        dropout: dropout rate while in training mode.
        layer_norm_epsilon: epsilon of layer normalisation.
        is_tied: whether head and token embedding share one matrix.
        begin_id: symbol before the first residue; None if there is none. It is never masked and never drawn.
        end_id: symbol after the last residue, likewise.
        pad_id: symbol of padding, likewise.
        excluded_ids: further symbols, besides the mask, whose logits are -inf.

    Raises:
        UsageError: a symbol is not in the vocabulary.
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
    begin_id: int | None = BEGIN_ID
    end_id: int | None = END_ID
    pad_id: int = PAD_ID
    excluded_ids: tuple[int, ...] = EXCLUDED_IDS

    def __post_init__(self) -> None:
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


class Head(nn.Module):
    """The language-model head: a dense layer, GELU, a layer norm and the vocabulary matrix."""

    def __init__(self, config: ProteinConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.linear = None if config.is_tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, features: Float[Tensor, "*rows d"], embedding: Float[Tensor, "v d"]) -> Float[Tensor, "*rows v"]:
        """Logits; ``embedding`` is the vocabulary matrix of a tied head."""
        matrix = embedding if self.linear is None else self.linear.weight
        return F.linear(self.norm(F.gelu(self.dense(features))), matrix, self.bias)


class ProteinTrunk(nn.Module, ABC):
    """A ``denoiser.Trunk`` without time input; subclasses have the blocks and ``hidden_states``."""

    config: Any
    blocks: nn.ModuleList

    def __init__(self, config: ProteinConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_embed = Embedding(config.vocab_size, config.hidden_size)
        self.keeps_activations = True

    @property
    def vocab_size(self) -> int:
        """Number of symbols, the mask included."""
        return int(self.config.vocab_size)

    @property
    def mask_id(self) -> int:
        """Index of the mask."""
        return int(self.config.mask_id)

    @property
    def length(self) -> int:
        """Context length L, the begin and end symbols included."""
        return int(self.config.length)

    @property
    def is_time_conditioned(self) -> bool:
        """False: there is no time input."""
        return False

    @property
    def hidden_size(self) -> int:
        """Width d."""
        return int(self.config.hidden_size)

    def embed(self, inputs: Int[Tensor, "*b"] | Float[Tensor, "*b v"]) -> Float[Tensor, "*b e"]:
        """See ``denoiser.Trunk.embed``."""
        embedded: Tensor = self.vocab_embed(inputs)
        return embedded

    @abstractmethod
    def hidden_states(
        self,
        embedded: Float[Tensor, "b l e"],
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """See ``denoiser.Trunk.hidden_states``; ``sigma`` is not read."""

    def after_blocks(self, x: Float[Tensor, "b l d"], *arguments: Any) -> Float[Tensor, "b l d"]:
        """The output of the last block; every block gets ``arguments`` too."""
        for block in self.blocks:
            if self.keeps_activations or not torch.is_grad_enabled():
                x = block(x, *arguments)
            else:
                x = checkpoint(block, x, *arguments, use_reentrant=False)
        return x

    def at_budget(self: Network, num_moves: int | None) -> Network:
        """The network itself, as it does not read the number of moves."""
        del num_moves
        return self


class ProteinDenoiser(ProteinTrunk):
    """A trunk with a head that predicts residues; see ``denoiser.Denoiser`` for the contract."""

    output_layer: Head

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
