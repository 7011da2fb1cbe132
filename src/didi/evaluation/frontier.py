"""Perplexity at equal entropy, and percentile bootstrap intervals of the statistics in a report.

A lower temperature lowers both perplexity and entropy, so models are compared at equal entropy. The temperature sweep
of a model is a curve of perplexity against entropy, interpolated between its points and never extrapolated.

Each bootstrapped statistic is a function of sums over sequences: a mean is sum / count, corpus perplexity
exp(sum of NLL / sum of tokens). A resample of ``b`` sequences with replacement is then a row of multinomial counts
times a matrix of per-sequence values, and all resamples are one matrix product.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from didi.evaluation.perplexity import Scores

NUM_RESAMPLES = 2000
LEVEL = 0.95  # nominal coverage of intervals
CHUNK_ELEMENTS = 2**24  # entries of a matrix of counts in memory, 128 MiB in float64

Point = tuple[float, float]
"""Entropy in nats, and perplexity."""
Statistic = Callable[[Float[Tensor, "r c"]], Float[Tensor, " r"]]
"""From the totals of r resamples to r values."""
Interval = tuple[float, float]
"""Lower and upper end."""
NAN_INTERVAL: Interval = (math.nan, math.nan)
"""Interval of a metric that was not computed."""


def perplexity_at_entropy(curve: Sequence[Point], entropy: float) -> float:
    """Perplexity of a temperature sweep at a given entropy, by linear interpolation of log-perplexity.

    Args:
        curve: (entropy in nats, perplexity) at each temperature, in any order.
        entropy: Entropy at which to interpolate, nats.

    Returns:
        The perplexity; NaN if ``entropy`` lies outside the sweep.
    """
    points = sorted(curve)
    for (low, low_ppl), (high, high_ppl) in itertools.pairwise(points):
        if low <= entropy <= high:
            share = (entropy - low) / (high - low) if high > low else 0.5
            return math.exp((1 - share) * math.log(low_ppl) + share * math.log(high_ppl))
    return math.nan


def frontier_ratio(curve: Sequence[Point], base: Sequence[Point]) -> tuple[float, Interval]:
    """Ratio of the perplexities of two sweeps at equal entropy: geometric mean over the entropies that both reach.

    Its logarithm is the area between the two curves of log-perplexity divided by the length of that range.

    Args:
        curve: (entropy in nats, perplexity) at each temperature, in any order.
        base: The same for the model whose perplexity is the denominator.

    Returns:
        The ratio and the range of entropies; NaN if the ranges of the sweeps do not overlap.
    """
    low = max(min(points)[0] for points in (curve, base))
    high = min(max(points)[0] for points in (curve, base))
    if low > high:
        return math.nan, (math.nan, math.nan)
    knots = sorted({low, high, *(entropy for entropy, _ in (*curve, *base) if low <= entropy <= high)})
    gaps = [math.log(perplexity_at_entropy(curve, at) / perplexity_at_entropy(base, at)) for at in knots]
    pieces = itertools.pairwise(zip(knots, gaps, strict=True))
    area = sum((to - begin) * (first + last) / 2 for (begin, first), (to, last) in pieces)
    return math.exp(area / (high - low) if high > low else gaps[0]), (low, high)


def bootstrap_interval(
    values: Float[Tensor, "b c"],
    statistic: Statistic,
    *,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval (Efron 1979) of a statistic of column totals, resampling whole sequences.

    Args:
        values: Contribution of each sequence to each of ``c`` totals.
        statistic: Maps the totals of ``r`` resamples to ``r`` values; NaN values are ignored.
        num_resamples: Number of resamples; 2,000 determine the ends of a 95% interval to within a few per cent of its
            width.
        level: Nominal coverage, in (0, 1).
        seed: Random seed of the resampling; the same seed draws the same sequences.

    Returns:
        Lower and upper end; they are equal for a single sequence.

    Raises:
        ValueError: There is no sequence, or ``level`` lies outside (0, 1).
    """
    num_sequences, num_columns = values.shape
    if not num_sequences:
        raise ValueError("a bootstrap needs at least one sequence")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1); got {level}")
    generator = torch.Generator().manual_seed(seed)
    values = values.double().cpu()
    chunk = max(1, CHUNK_ELEMENTS // max(num_sequences, num_columns))
    results = []
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        draws = torch.randint(num_sequences, (size, num_sequences), generator=generator)
        counts = torch.zeros(size, num_sequences, dtype=torch.float64).scatter_add_(
            1, draws, torch.ones((), dtype=torch.float64).expand_as(draws)
        )
        results.append(statistic(counts @ values))
    return percentile_interval(torch.cat(results), level=level)


def percentile_interval(replicates: Float[Tensor, " r"], *, level: float = LEVEL) -> Interval:
    """The central ``level`` of bootstrap replicates, float64; NaN replicates are left out."""
    tail = (1 - level) / 2
    low, high = replicates.nanquantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def mean_interval(values: Float[Tensor, " b"], *, level: float = LEVEL, seed: int = 0) -> Interval:
    """Interval of the mean of one value per sequence, such as :func:`~didi.evaluation.diversity.token_entropy`."""
    return bootstrap_interval(torch.stack([values, torch.ones_like(values)], 1), _ratio, level=level, seed=seed)


def perplexity_interval(scores: Scores, *, level: float = LEVEL, seed: int = 0) -> Interval:
    """Interval of corpus perplexity; numerator and denominator are resampled together."""
    columns = torch.stack([scores.nll, scores.num_tokens.to(scores.nll)], 1)
    return bootstrap_interval(columns, lambda totals: _ratio(totals).exp(), level=level, seed=seed)


def _ratio(totals: Float[Tensor, "r 2"]) -> Float[Tensor, " r"]:
    return totals[:, 0] / totals[:, 1]
