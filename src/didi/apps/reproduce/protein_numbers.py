"""Numbers in the report of ``didi reproduce --scale proteins``."""

import math

from didi.evaluation.frontier import Interval


def digits(unit: str) -> int:
    """Number of decimals that the report shows for scores of a unit."""
    return 1 if unit == "pLDDT" else 3


def number_with(value: float, interval: Interval | None, spec: str) -> str:
    """A value with its interval; a dash where it was not measured."""
    if math.isnan(value):
        return "–"
    if interval is None or math.isnan(interval[0]):
        return f"{value:{spec}}"
    return f"{value:{spec}} [{interval[0]:{spec}}, {interval[1]:{spec}}]"
