"""Masks of a given size: a share of the positions, chosen at random, instead of each position with a probability."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def mask_sizes(ratio: Float[Tensor, "*b"] | float, num_free: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """Number of masks of each sequence: a share of its free positions, rounded, 1 or more; 0 where none is free."""
    return torch.minimum((ratio * num_free).round().long().clamp(min=1), num_free)


def masks_of_size(
    sizes: Int[Tensor, " b"], uniforms: Float[Tensor, "b l"], is_free: Bool[Tensor, "b l"]
) -> Bool[Tensor, "b l"]:
    """Masks at the free positions whose uniform numbers are smallest.

    Args:
        sizes: number of masks, at most that of the free positions.
        uniforms: numbers in [0, 1).
        is_free: positions that may be masked.
    """
    rank = uniforms.masked_fill(~is_free, 2.0).argsort(1).argsort(1)
    return rank < sizes[:, None]
