"""The protocols of networks that predict clean tokens from corrupted ones, and of their trunks."""

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from didi.diffusion.absorbing import selected_rows

Tokens = Int[Tensor, "b l"]
Simplex = Float[Tensor, "b l v"]


@runtime_checkable
class Denoiser(Protocol):
    """A map from a corrupted sequence (and its noise level) to logits of the clean tokens.

    The map has two parts, because most callers need the vocabulary head at a few positions only: ``features`` runs the
    trunk at all positions, and ``head`` maps any rows of features to logits.
    """

    @property
    def vocab_size(self) -> int:
        """Number of symbols, the mask included."""
        ...

    @property
    def length(self) -> int:
        """Context length L."""
        ...

    @property
    def is_time_conditioned(self) -> bool:
        """Whether the network reads its noise level."""
        ...

    def features(
        self,
        inputs: Tokens | Simplex,
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Output of the trunk at every position, ready for ``head``.

        Args:
            inputs: token ids, or distributions over tokens, whose expected embeddings are used.
            sigma: noise level from ``Process.noise_level``; None for a network that is not conditioned on time.
            attention_mask: False at padding, which no position attends to; None without padding.
        """
        ...

    def head(self, features: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows v"]:
        """Raw logits of any rows of features."""
        ...


@runtime_checkable
class Trunk(Protocol):
    """A network without its output layer, an ``nn.Module``; the base of a discriminator.

    Training shards, freezes and adapts it block by block, and may checkpoint its activations.

    Attributes:
        blocks: the transformer blocks, first to last.
        keeps_activations: False to keep only the input of each block and run the block again in the backward pass.
    """

    blocks: nn.ModuleList
    keeps_activations: bool

    @property
    def hidden_size(self) -> int:
        """Width d."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of symbols, the mask included."""
        ...

    @property
    def mask_id(self) -> int | None:
        """Index of [MASK]; None in a network of a process without one."""
        ...

    @property
    def length(self) -> int:
        """Context length L."""
        ...

    @property
    def is_time_conditioned(self) -> bool:
        """Whether callers pass the noise level."""
        ...

    def embed(self, inputs: Int[Tensor, "*b"] | Float[Tensor, "*b v"]) -> Float[Tensor, "*b d"]:
        """Embeddings of token ids, or expected embeddings of distributions over tokens."""
        ...

    def hidden_states(
        self,
        embedded: Float[Tensor, "b l d"],
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Hidden states after the last block; arguments are those of ``Denoiser.features``."""
        ...


def logits_at(
    denoiser: Denoiser,
    inputs: Tokens | Simplex,
    is_selected: Bool[Tensor, "b l"],
    sigma: Float[Tensor, " b"] | None = None,
    attention_mask: Bool[Tensor, "b l"] | None = None,
    num_selected: int | None = None,
) -> Float[Tensor, "n v"]:
    """Logits at the selected positions only, in row-major order; the trunk still runs at all positions.

    Without ``num_selected``, the number of selected positions, the host waits for a CUDA device to count them.
    """
    features = denoiser.features(inputs, sigma, attention_mask)
    if num_selected is None:
        return denoiser.head(features[is_selected])
    return denoiser.head(features.flatten(0, 1).index_select(0, selected_rows(is_selected, num_selected)))
