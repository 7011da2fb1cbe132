r"""Maximum mean discrepancy between samples and a corpus as pure functions of tensors, and its policy gradient.

Representation-Space MMD for Diffusion Language Models (Drobyshevskiy et al. 2026), https://arxiv.org/abs/2610.06648.

A sequence is a set of weighted points, features of a frozen network. The kernel of two sequences is the mean of a
kernel over all pairs of their points,

.. math:: \kappa(x, x') = \sum_{i, j} w_i w'_j \, k(\phi_i(x), \phi_j(x')),

and the discrepancy between a sampler p and the data q, without the term that does not depend on p, is

.. math:: L(p) = E_{x, x' \sim p} \kappa(x, x') - 2 E_{x \sim p, y \sim q} \kappa(x, y),
    \qquad \nabla L = E_{x \sim p}[\nabla \log p(x) \, c(x)],
    \qquad c(x) = 2 E_{x' \sim p} \kappa(x, x') - 2 E_{y \sim q} \kappa(x, y).

The student minimises the cost c. Axes: ``s`` states (samples of one state are compared with each other; unconditional
samples all have the same state), ``g`` samples of a state, ``r`` sequences of the corpus, ``n`` and ``m`` sequences,
``l`` and ``p`` points of a sequence, ``d`` features.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from didi.arguments import one_of
from didi.errors import UsageError

MmdAdvantage = Literal["groups", "leave-one-out"]

_MAX_PAIRS = 2**24  # pairs of points whose kernels are in memory at once


def gaussian_kernel(
    squared_distances: Float[Tensor, "*shape"], bandwidths: Float[Tensor, " k"]
) -> Float[Tensor, "*shape"]:
    r"""Mean over the bandwidths of :math:`\exp(-d^2 / 2 \sigma^2)`, in (0, 1]."""
    total = torch.zeros_like(squared_distances)
    for sigma in bandwidths:
        total += torch.exp(squared_distances * (-0.5 / sigma.square()))
    return total / len(bandwidths)


def sequence_kernel(
    first: Float[Tensor, "s n l d"],
    second: Float[Tensor, "s m p d"],
    bandwidths: Float[Tensor, " k"],
    first_weights: Float[Tensor, "s n l"] | None = None,
    second_weights: Float[Tensor, "s m p"] | None = None,
) -> Float[Tensor, "s n m"]:
    r"""The kernel :math:`\kappa` of every pair of sequences of a state.

    Args:
        first: points of the sequences n, the rows of the kernel matrix.
        second: points of the sequences m, its columns.
        bandwidths: :math:`\sigma` of Gaussian kernels whose mean is k; in the unit of the features.
        first_weights: weights of the points of ``first``, with sum 1 for each sequence; None for equal weights.
        second_weights: weights of the points of ``second``.
    """
    (num_states, num_rows, length, _), (num_columns, num_points) = first.shape, second.shape[1:3]
    center = second.mean((1, 2))  # squared distances are expanded, which loses digits if features are far from 0
    columns = second.flatten(1, 2) - center[:, None]
    squares = columns.square().sum(-1)
    weights = second.new_full(second.shape[:3], 1 / num_points) if second_weights is None else second_weights
    size = max(1, _MAX_PAIRS // (length * num_columns * num_points))  # rows at once
    result = first.new_empty(num_states, num_rows, num_columns)
    for state in range(num_states):
        for start in range(0, num_rows, size):
            points = first[state, start : start + size].flatten(0, 1) - center[state]
            distances = points.square().sum(-1)[:, None] + squares[state] - 2 * points @ columns[state].T
            kernel = gaussian_kernel(distances.clamp_(min=0), bandwidths).view(-1, length, num_columns, num_points)
            row_points = (kernel * weights[state]).sum(-1)
            row_weights = None if first_weights is None else first_weights[state, start : start + size, :, None]
            rows = row_points.mean(1) if row_weights is None else (row_points * row_weights).sum(1)
            result[state, start : start + size] = rows
    return result


def median_distance(points: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Median of the positive distances between points, the bandwidth of the median heuristic; 1 if there are none."""
    distances = torch.pdist(points)
    positive = distances[distances > 0]
    return positive.median() if len(positive) else distances.new_ones(())


def mmd_squared(
    sample_kernel: Float[Tensor, "g g"], cross_kernel: Float[Tensor, "g r"], corpus_kernel: Float[Tensor, "r r"]
) -> Float[Tensor, ""]:
    """Unbiased estimate of the squared discrepancy; it can be negative if the distributions are close.

    Args:
        sample_kernel: kernels of pairs of samples.
        cross_kernel: kernels of samples and sequences of the corpus.
        corpus_kernel: kernels of pairs of sequences of the corpus.
    """
    return mean_of_pairs(sample_kernel) + mean_of_pairs(corpus_kernel) - 2 * cross_kernel.mean()


def mean_of_pairs(kernel: Float[Tensor, "*s g g"]) -> Float[Tensor, "*s"]:
    """Mean over pairs of different sequences, without the diagonal."""
    num = kernel.shape[-1]
    return (kernel.sum((-2, -1)) - kernel.diagonal(dim1=-2, dim2=-1).sum(-1)) / (num * (num - 1))


def mmd_advantages(
    sample_kernel: Float[Tensor, "s g g"],
    cross_kernel: Float[Tensor, "s g r"],
    *,
    advantage: MmdAdvantage = "leave-one-out",
    group_size: int = 2,
) -> Float[Tensor, "s g"]:
    r"""Factors of the score of each sample, with which the mean over samples is an unbiased :math:`\nabla L`.

    Args:
        sample_kernel: kernels of pairs of samples of a state.
        cross_kernel: kernels of samples and sequences of the corpus of a state.
        advantage: ``groups`` (the publication): groups of ``group_size`` consecutive samples share the estimate of L
            from the group, minus the mean estimate of the other groups. ``leave-one-out`` (not in the publication): the
            cost c(x), estimated with all other samples, minus the mean cost of the other samples, estimated without x;
            the expected gradient is the same.
        group_size: number of samples B of a group, 2 or more.

    Raises:
        UsageError: no advantage has that name, there are too few samples or groups for a baseline, or the groups do not
            divide the samples.
    """
    one_of("an advantage", advantage, get_args(MmdAdvantage))
    num = sample_kernel.shape[-1]
    if advantage == "groups":
        if group_size < 2 or num % group_size or num < 2 * group_size:
            raise UsageError(
                f"a state needs 2 or more groups of 2 or more samples; got {num} samples in groups of {group_size}"
            )
        return _group_advantages(sample_kernel, cross_kernel, group_size)
    if num < 3:
        raise UsageError(f"leave-one-out needs 3 or more samples of a state; got {num}")
    off_diagonal = sample_kernel - torch.diag_embed(sample_kernel.diagonal(dim1=1, dim2=2))
    # The two terms of c: repulsion from other samples, attraction to the corpus.
    sums, attraction = off_diagonal.sum(2), 2 * cross_kernel.mean(2)
    costs = 2 * sums / (num - 1) - attraction
    # The baseline of x is independent of x: the mean cost of the other samples, without their kernels with x.
    baseline_repulsion = 2 * (sums.sum(1, keepdim=True) - 2 * sums) / ((num - 1) * (num - 2))
    baseline_attraction = (attraction.sum(1, keepdim=True) - attraction) / (num - 1)
    return costs - (baseline_repulsion - baseline_attraction)


def _group_advantages(
    sample_kernel: Float[Tensor, "s g g"], cross_kernel: Float[Tensor, "s g r"], size: int
) -> Float[Tensor, "s g"]:
    """Estimate of L of each group minus the mean of the other groups, times the group size.

    The factor is needed since the caller takes the mean over samples, and L of a group has the gradient of the sum of
    its samples' scores.
    """
    num_states, num = sample_kernel.shape[:2]
    num_groups = num // size
    blocks = sample_kernel.view(num_states, num_groups, size, num_groups, size)
    within = mean_of_pairs(blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1))
    losses = within - 2 * cross_kernel.reshape(num_states, num_groups, -1).mean(2)
    baseline = (losses.sum(1, keepdim=True) - losses) / (num_groups - 1)
    return (size * (losses - baseline)).repeat_interleave(size, 1)


def mean_kernel(kernels: Sequence[Float[Tensor, "s n m"]]) -> Float[Tensor, "s n m"]:
    """Mean of the kernels of several kinds of features, which is again a kernel."""
    return torch.stack(list(kernels)).mean(0)
