"""The random initial state of a one-step generator (Di[M]O, Zhu et al. 2025, https://arxiv.org/abs/2503.15457).

The tokens of one pass are independent given the input of the network. With a fixed input, samples follow a product
distribution; with a random input they follow a mixture of product distributions.
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
    """The distribution of the network's input; the default is [MASK] at every free position.

    Attributes:
        mask_ratio: share of the free positions that are [MASK], in (0, 1]. Their number is rounded, at least 1, and
            they are chosen at random; the other free positions hold uniformly drawn tokens.
        noise_std: standard deviation s of Gaussian noise in the embeddings e of free positions, in [0, 1]: the network
            reads sqrt(1 - s^2) e + s n with n standard normal.

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
        """A draw of the tokens of the input.

        Args:
            canvas: free positions; given tokens and padding stay.
            uniforms: numbers in [0, 1); the first of a position decides whether it is masked, the second draws its
                token.
            mask_id: index of [MASK].
            vocab_size: number of symbols V, [MASK] included.
        """
        mask_draws, token_draws = uniforms.unbind(-1)
        is_masked = masks_of_size(mask_sizes(self.mask_ratio, canvas.is_free.sum(1)), mask_draws, canvas.is_free)
        drawn = (token_draws * (vocab_size - 1)).long()
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
            tokens: result of the method ``tokens``.
            is_free: positions whose embeddings get noise.
            normals: standard normal numbers n; None if ``noise_std`` is 0.
            sigma: noise level, see ``DiT.features``.
            attention_mask: see ``DiT.features``.

        Raises:
            UsageError: there is noise and the network has token dropout.
        """
        if normals is None:
            return network.features(tokens, sigma, attention_mask)
        embedded = network.embed(tokens)
        if embedded.shape[-1] != normals.shape[-1]:  # an extra column for masks (``Esm2Trunk.embed``)
            raise UsageError("embeddings with token dropout, as in ESM-2, support no noise: set noise_std to 0")
        noisy = (1 - self.noise_std**2) ** 0.5 * embedded + self.noise_std * normals.to(embedded.dtype)
        return network.features_of_embeddings(torch.where(is_free[..., None], noisy, embedded), sigma, attention_mask)


MASKS = InitialState()
"""The initial state without randomness: [MASK] at every free position."""
