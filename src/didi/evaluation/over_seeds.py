"""Figures of runs that differ in their seed only: mean and interval over the seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5% quantiles of Student's t by degrees of freedom; beyond them the normal law's is close.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL_QUANTILE = 1.96


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds.

    Attributes:
        mean: over the seeds.
        half_width: of its 95% t-interval; NaN for a single seed.
        num_seeds: that were run.
    """

    mean: float
    half_width: float
    num_seeds: int

    def __str__(self) -> str:
        digits = 1 if abs(self.mean) >= 100 else 2
        return f"{self.mean:.{digits}f}" + ("" if math.isnan(self.half_width) else f" ± {self.half_width:.{digits}f}")


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% t-interval of one figure of each seed.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("an estimate needs a seed or more")
    num = len(values)
    if num == 1:
        return Estimate(values[0], math.nan, 1)
    quantile = T_QUANTILES[num - 2] if num - 2 < len(T_QUANTILES) else NORMAL_QUANTILE
    return Estimate(statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(num), num)


def ratio_estimate(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Geometric mean of ``ours`` over ``theirs``, seed by seed; its half-width is that of the logarithm."""
    logs = estimate([math.log(one / other) for one, other in zip(ours, theirs, strict=True)])
    return Estimate(math.exp(logs.mean), logs.half_width, logs.num_seeds)
