"""Ratio of perplexities at equal entropy, with a bootstrap interval that resamples all sample sets independently."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from didi.errors import UsageError
from didi.evaluation.frontier import (
    LEVEL,
    NAN_INTERVAL,
    NUM_RESAMPLES,
    Interval,
    Point,
    percentile_interval,
    perplexity_at_entropy,
)
from didi.evaluation.perplexity import Scores

MAX_OUTSIDE = 0.01
"""Largest share of resamples whose entropy may lie outside the sweep."""

PerSequence = Float[Tensor, "n 3"]
"""NLL in nats, number of judge tokens and entropy in nats of each sequence."""


def per_sequence(scores: Scores, entropies: Float[Tensor, " n"]) -> PerSequence:
    """Columns of a sample set for ``ratio_at_equal_entropy``.

    Args:
        scores: scores of a judge.
        entropies: entropy of each sequence, nats; see :func:`~didi.evaluation.diversity.token_entropy`.
    """
    return torch.stack([scores.nll.double(), scores.num_tokens.double(), entropies.double()], 1)


def ratio_at_equal_entropy(
    samples: PerSequence,
    sweep: Sequence[PerSequence],
    *,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Perplexity of a sample set divided by that of another model at the same mean entropy.

    The other model's perplexity is interpolated between the temperatures of its sweep. The interval assumes that all
    sets are independent: drawn with different seeds, or by models whose samples do not depend on each other.

    Args:
        samples: the sample set, n sequences.
        sweep: two sample sets or more of the other model, at different temperatures.
        num_resamples: number of bootstrap resamples.
        level: nominal coverage, in (0, 1).
        seed: random seed of the resamples.

    Returns:
        The ratio and its percentile interval. The ratio is NaN if the entropy lies outside the sweep; the interval is
        NaN if it lies outside in more than ``MAX_OUTSIDE`` of the resamples.

    Raises:
        UsageError: the sweep has fewer than two sets.
    """
    if len(sweep) < 2:
        raise UsageError(f"a sweep has two temperatures or more; got {len(sweep)}")
    generator = torch.Generator().manual_seed(seed)
    sets = (samples, *sweep)
    resampled = [_resampled(values, num_resamples, generator) for values in sets]
    ratios = torch.tensor([_ratio(*points) for points in zip(*resampled, strict=True)], dtype=torch.float64)
    ratio = _ratio(*(_point(values.sum(0), len(values)) for values in sets))
    if ratios.isnan().double().mean() > MAX_OUTSIDE:
        return ratio, NAN_INTERVAL
    return ratio, percentile_interval(ratios, level=level)


def _ratio(point: Point, *sweep: Point) -> float:
    entropy, perplexity = point
    return perplexity / perplexity_at_entropy(sweep, entropy)


def _point(totals: Float[Tensor, " 3"], num_sequences: int) -> Point:
    """Mean entropy and corpus perplexity."""
    nll, num_tokens, entropy = totals.tolist()
    return entropy / num_sequences, math.exp(nll / num_tokens)


def _resampled(values: PerSequence, num_resamples: int, generator: torch.Generator) -> list[Point]:
    size = len(values)
    draws = (torch.randint(size, (size,), generator=generator) for _ in range(num_resamples))
    return [_point(values[draw].sum(0), size) for draw in draws]
