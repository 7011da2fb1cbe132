"""The random initial state of a one-step generator (Di[M]O, Zhu et al. 2025, https://arxiv.org/abs/2503.15457).

A network draws the tokens of one pass independently, given its input. With the same input for all samples these are
those of one product distribution; with a random input they are those of a mixture of products.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.arguments import finite_number, set_fields
from didi.diffusion.canvas import Canvas
from didi.diffusion.fixed_masks import mask_sizes, masks_of_size
from didi.errors import UsageError
from didi.models.networks import DenoiserNetwork


@dataclass(frozen=True)
class InitialState:
    """The distribution of the network's input; the default is that of masked diffusion, [MASK] everywhere.

    Attributes:
        mask_ratio: share of the free positions that are [MASK], in (0, 1], rounded to a whole number of 1 or more; they
            are chosen at random, and the others hold tokens drawn uniformly from the vocabulary without [MASK].
        noise_std: standard deviation s of Gaussian noise in the embeddings e of free positions, in [0, 1]: the network
            reads sqrt(1 - s^2) e + s n, n standard normal.

    Raises:
        UsageError: a value is out of range.
    """

    mask_ratio: float = 1.0
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        set_fields(
            self,
            mask_ratio=finite_number("mask_ratio", self.mask_ratio, low=0, high=1, is_low_open=True),
            noise_std=finite_number("noise_std", self.noise_std, low=0, high=1),
        )

    def tokens(
        self, canvas: Canvas, uniforms: Float[Tensor, "b l 2"], mask_id: int, vocab_size: int
    ) -> Int[Tensor, "b l"]:
        """A draw of the discrete part of the input.

        Args:
            canvas: given tokens, and padding, stay as they are.
            uniforms: numbers in [0, 1); the first of a position decides whether it is masked, the second its token.
            mask_id: index of [MASK].
            vocab_size: number of symbols V, [MASK] included.
        """
        order, which = uniforms.unbind(-1)
        is_masked = masks_of_size(mask_sizes(self.mask_ratio, canvas.is_free.sum(1)), order, canvas.is_free)
        drawn = (which * (vocab_size - 1)).long()
        drawn = drawn + (drawn >= mask_id).long()
        return canvas.clamped(drawn.masked_fill(is_masked, mask_id))

    def features(
        self,
        network: DenoiserNetwork,
        tokens: Int[Tensor, "b l"],
        is_free: Bool[Tensor, "b l"],
        normals: Float[Tensor, "b l d"] | None,
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """``DiT.features`` of an initial state.

        Args:
            network: one-step generator.
            tokens: from ``tokens``.
            is_free: positions whose embeddings have noise.
            normals: n, standard normal numbers; None where ``noise_std`` is 0.
            sigma: noise level, see ``DiT.features``.
            attention_mask: see ``DiT.features``.

        Raises:
            UsageError: there is noise, and the network has token dropout.
        """
        if normals is None:
            return network.features(tokens, sigma, attention_mask)
        embedded = network.embed(tokens)
        if embedded.shape[-1] != normals.shape[-1]:  # a column of masks beside them, which has no noise
            raise UsageError("embeddings with token dropout, as those of ESM-2, have no noise: set noise_std to 0")
        noisy = (1 - self.noise_std**2) ** 0.5 * embedded + self.noise_std * normals.to(embedded.dtype)
        return network.features_of_embeddings(torch.where(is_free[..., None], noisy, embedded), sigma, attention_mask)


MASKS = InitialState()
"""The state without randomness."""
