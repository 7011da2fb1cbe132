"""Figures of runs that differ in their seed only: mean and interval over the seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5% quantiles of Student's t by degrees of freedom; beyond them an expansion comes within 0.2%.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL_QUANTILE = 1.95996


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds.

    Attributes:
        mean: over the seeds.
        low: lower end of its 95% t-interval; NaN for a single seed.
        high: upper end.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 0 if abs(self.mean) >= 1000 else 1 if abs(self.mean) >= 100 else 2
        interval = "" if math.isnan(self.low) else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.mean:.{digits}f}{interval}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% t-interval of one figure of each seed.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("an estimate needs a seed or more")
    mean, num = statistics.fmean(values), len(values)
    if num == 1:
        return Estimate(mean, math.nan, math.nan)
    half_width = t_quantile(num - 1) * statistics.stdev(values) / math.sqrt(num)
    return Estimate(mean, mean - half_width, mean + half_width)


def geometric_estimate(values: Sequence[float]) -> Estimate:
    """Geometric mean and 95% interval of a positive figure, a perplexity or a ratio: ``estimate`` of its logarithm."""
    logs = estimate([math.log(value) for value in values])
    return Estimate(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high))


def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t (Abramowitz & Stegun 26.7.5 where no table has it)."""
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = NORMAL_QUANTILE
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
