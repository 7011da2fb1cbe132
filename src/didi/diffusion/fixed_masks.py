"""Masks of a fixed size at random positions, instead of independent masks at each position."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def mask_sizes(ratio: Float[Tensor, "*b"] | float, num_free: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """Number of masks of each sequence: ``ratio`` of its free positions, rounded, 1 or more; 0 if none is free."""
    return torch.minimum((ratio * num_free).round().long().clamp(min=1), num_free)


def masks_of_size(
    sizes: Int[Tensor, " b"], uniforms: Float[Tensor, "b l"], is_free: Bool[Tensor, "b l"]
) -> Bool[Tensor, "b l"]:
    """Masks at the free positions with the smallest uniform numbers.

    Args:
        sizes: number of masks of each sequence, at most the number of its free positions.
        uniforms: numbers in [0, 1).
        is_free: positions that may be masked.
    """
    rank = uniforms.masked_fill(~is_free, 2.0).argsort(1).argsort(1)
    return rank < sizes[:, None]
