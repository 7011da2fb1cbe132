r"""Maximum mean discrepancy between samples and a corpus as pure functions of tensors, and its policy gradient.

Representation-Space MMD for Diffusion Language Models (Drobyshevskiy et al. 2026), https://arxiv.org/abs/2610.06648.

A sequence is a set of weighted points, features of a frozen network. The kernel of two sequences is the mean of a
kernel over all pairs of their points,

.. math:: \kappa(x, x') = \sum_{i, j} w_i w'_j \, k(\phi_i(x), \phi_j(x')),

and the discrepancy of a sampler p from the data q, without its part that p does not change, is

.. math:: L(p) = E_{x, x' \sim p} \kappa(x, x') - 2 E_{x \sim p, y \sim q} \kappa(x, y),
    \qquad \nabla L = E_{x \sim p}[\nabla \log p(x) \, c(x)],
    \qquad c(x) = 2 E_{x' \sim p} \kappa(x, x') - 2 E_{y \sim q} \kappa(x, y).

All signs are those of a cost, which the student descends. Axes: ``s`` states whose samples are compared with one
another (all samples of a batch are of one state where they are unconditional), ``g`` samples of a state, ``r``
sequences of the corpus, ``n``, ``m`` sequences, ``l``, ``p`` points of a sequence, ``d`` features.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from didi.errors import UsageError

MmdAdvantage = Literal["groups", "leave-one-out"]

_MOST_PAIRS = 2**24  # of points whose kernel is in memory at once


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
        first: points of the sequences of the rows.
        second: points of the sequences of the columns.
        bandwidths: :math:`\sigma` of each Gaussian kernel, whose mean is k; in the unit of the features.
        first_weights: weight of each point, of sum 1 in a sequence; None for the same of all.
        second_weights: the same of ``second``.
    """
    (num_states, num_rows, length, _), (num_columns, num_points) = first.shape, second.shape[1:3]
    center = second.mean((1, 2))  # distances are found by expansion, which loses digits where features are far from 0
    columns = second.flatten(1, 2) - center[:, None]
    squares = columns.square().sum(-1)
    weights = second.new_full(second.shape[:3], 1 / num_points) if second_weights is None else second_weights
    run = max(1, _MOST_PAIRS // (length * num_columns * num_points))  # rows at once
    found = first.new_empty(num_states, num_rows, num_columns)
    for state in range(num_states):
        for start in range(0, num_rows, run):
            points = first[state, start : start + run].flatten(0, 1) - center[state]
            distances = points.square().sum(-1)[:, None] + squares[state] - 2 * points @ columns[state].T
            kernel = gaussian_kernel(distances.clamp_(min=0), bandwidths).view(-1, length, num_columns, num_points)
            of_points = (kernel * weights[state]).sum(-1)
            own = None if first_weights is None else first_weights[state, start : start + run, :, None]
            rows = of_points.mean(1) if own is None else (of_points * own).sum(1)
            found[state, start : start + run] = rows
    return found


def median_distance(points: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Median of the distances between points, the bandwidth of the median heuristic.

    It is of the pairs that differ, and 1 where none do.
    """
    distances = torch.pdist(points)
    differing = distances[distances > 0]
    return differing.median() if len(differing) else distances.new_ones(())


def mmd_squared(
    of_samples: Float[Tensor, "g g"], of_both: Float[Tensor, "g r"], of_corpus: Float[Tensor, "r r"]
) -> Float[Tensor, ""]:
    """Unbiased estimate of the squared discrepancy; below 0 by chance where the distributions are close.

    Args:
        of_samples: kernel of the pairs of samples.
        of_both: of samples and sequences of the corpus.
        of_corpus: of the pairs of the latter.
    """
    return mean_of_pairs(of_samples) + mean_of_pairs(of_corpus) - 2 * of_both.mean()


def mean_of_pairs(kernel: Float[Tensor, "*s g g"]) -> Float[Tensor, "*s"]:
    """Mean over the pairs of two different sequences."""
    num = kernel.shape[-1]
    return (kernel.sum((-2, -1)) - kernel.diagonal(dim1=-2, dim2=-1).sum(-1)) / (num * (num - 1))


def mmd_advantages(
    of_samples: Float[Tensor, "s g g"],
    of_both: Float[Tensor, "s g r"],
    *,
    advantage: MmdAdvantage = "leave-one-out",
    group_size: int = 2,
) -> Float[Tensor, "s g"]:
    r"""What multiplies the score of each sample, so that the mean over samples is an unbiased :math:`\nabla L`.

    Args:
        of_samples: kernel of the pairs of samples of a state.
        of_both: of its samples and its sequences of the corpus.
        advantage: ``groups`` (the publication): runs of ``group_size`` samples share the estimate of L that they give,
            less the mean of those of the other groups. ``leave-one-out`` (ours): a sample has the cost c(x) that all
            others give, less the mean of their costs without it; the same expected gradient from all pairs.
        group_size: samples of a group, B, 2 or more.

    Raises:
        UsageError: there are too few samples or groups for a baseline.
    """
    num = of_samples.shape[-1]
    if advantage == "groups":
        if group_size < 2 or num % group_size or num < 2 * group_size:
            raise UsageError(
                f"groups have 2 samples or more and are 2 or more of each state; got {num} samples in groups of "
                f"{group_size}"
            )
        return _group_advantages(of_samples, of_both, group_size)
    if num < 3:
        raise UsageError(f"leave-one-out needs 3 samples of a state or more; got {num}")
    others = of_samples - torch.diag_embed(of_samples.diagonal(dim1=1, dim2=2))
    sums, towards = others.sum(2), 2 * of_both.mean(2)
    costs = 2 * sums / (num - 1) - towards
    # Of the costs of the other samples, each without this one: it shares no sample with the score.
    repelled = 2 * (sums.sum(1, keepdim=True) - 2 * sums) / ((num - 1) * (num - 2))
    attracted = (towards.sum(1, keepdim=True) - towards) / (num - 1)
    return costs - (repelled - attracted)


def _group_advantages(
    of_samples: Float[Tensor, "s g g"], of_both: Float[Tensor, "s g r"], size: int
) -> Float[Tensor, "s g"]:
    """Estimate of L of each group over the mean of the others; a mean over samples counts it once for each."""
    num_states, num = of_samples.shape[:2]
    num_groups = num // size
    blocks = of_samples.view(num_states, num_groups, size, num_groups, size)
    within = mean_of_pairs(blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1))
    losses = within - 2 * of_both.reshape(num_states, num_groups, -1).mean(2)
    of_others = (losses.sum(1, keepdim=True) - losses) / (num_groups - 1)
    return (size * (losses - of_others)).repeat_interleave(size, 1)


def mean_kernel(kernels: Sequence[Float[Tensor, "s n m"]]) -> Float[Tensor, "s n m"]:
    """Mean of the kernels of several kinds of features, a kernel itself."""
    return torch.stack(list(kernels)).mean(0)
