"""Mean and confidence interval of a metric over training seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from didi.evaluation.frontier import LEVEL


@dataclass(frozen=True)
class Estimate:
    """Mean of a metric over training seeds, with its interval.

    Attributes:
        mean: Mean over the seeds.
        low: Lower end of the 95% t-interval; NaN for a single seed.
        high: Upper end of the 95% t-interval; NaN for a single seed.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 0 if abs(self.mean) >= 1000 else 1 if abs(self.mean) >= 100 else 2
        interval = "" if math.isnan(self.low) else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.mean:.{digits}f}{interval}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% t-interval of a metric.

    Args:
        values: One value of the metric per seed.

    Raises:
        ValueError: ``values`` is empty.
    """
    if not values:
        raise ValueError("an estimate needs one value or more")
    mean, num = statistics.fmean(values), len(values)
    if num == 1:
        return Estimate(mean, math.nan, math.nan)
    from scipy import stats  # imported here because it takes most of a second

    half_width = float(stats.t.ppf((1 + LEVEL) / 2, num - 1)) * statistics.stdev(values) / math.sqrt(num)
    return Estimate(mean, mean - half_width, mean + half_width)


def geometric_estimate(values: Sequence[float]) -> Estimate:
    """Geometric mean and 95% t-interval of a positive metric (a perplexity or a ratio), computed from its logarithm.

    Args:
        values: One positive value of the metric per seed.

    Raises:
        ValueError: ``values`` is empty.
    """
    logs = estimate([math.log(value) for value in values])
    return Estimate(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high))
