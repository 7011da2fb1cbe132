"""Measurements of ``didi bench`` for one contestant, and their table."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from didi.evaluation.row import finite
from didi.markdown import markdown_table

Ratio = tuple[float, float, float]
"""Median, least and greatest over the rounds."""
PARTS = ("trunk", "head", "draw", "discriminator", "rest")
"""Of a sampler's time."""


def ratio(own: Sequence[float], other: Sequence[float]) -> Ratio:
    """``own`` over ``other``, round by round."""
    found = sorted(one / two for one, two in zip(own, other, strict=True))
    return statistics.median(found), found[0], found[-1]


@dataclass(frozen=True)
class SpeedRow:
    """One contestant under one load.

    Attributes:
        method: ``trunk`` is the bare trunk passes that ``ancestral`` makes; ``passes`` are these with the vocabulary
            head at every predicted position; ``guided floor`` those of ``guided`` and the discriminator's, a backward
            pass counted as a forward one.
        variant: how its trunk runs.
        batch_size: sequences at a time.
        length: positions.
        nfe: moves; the length for the autoregressive model.
        seconds: wall time of the batch in each round.
        over_floor: its time over that of its bare passes, round by round; None for those themselves.
        speedup: time of the published algorithm over its own, round by round; None where that takes no part.
        peak_mib: memory at its peak above that before the run, MiB; NaN where it was not measured, as for bare passes.
        shares: parts of the time spent in ``trunk``, ``head``, ``draw``, ``discriminator`` and the ``rest``.
    """

    method: str
    batch_size: int
    length: int
    nfe: int
    seconds: tuple[float, ...]
    variant: str = "float32"
    over_floor: Ratio | None = None
    speedup: Ratio | None = None
    peak_mib: float = math.nan
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def seconds_per_sequence(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.seconds) / self.batch_size

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the batch over its median time."""
        return self.length / self.seconds_per_sequence

    def record(self) -> dict[str, Any]:
        """Its fields as JSON has them; null for a figure that was not measured."""
        return {key: finite(value) for key, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "SpeedRow":
        """The row of a record that ``record()`` made."""
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
        return cls(**values | {"peak_mib": math.nan if values["peak_mib"] is None else values["peak_mib"]})


def speed_table(rows: Sequence[SpeedRow], *, model: str, machine: str) -> str:
    """The rows as a Markdown table with what they share below."""
    header = ["method", "trunk in", "batch", "NFE", "s / sequence", "tokens / s", "over its bare passes"]
    header += ["speed over published", "peak MiB", ", ".join(PARTS)]
    body = []
    for row in rows:
        ratios = [
            "–" if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"
            for found in (row.over_floor, row.speedup)
        ]
        values = ", ".join(f"{row.shares.get(part, 0):.0%}" for part in PARTS) if row.shares else "–"
        load = [row.method, row.variant, row.batch_size, row.nfe]
        speed = [f"{row.seconds_per_sequence:.3g}", f"{row.tokens_per_second:,.0f}"]
        memory = "–" if math.isnan(row.peak_mib) else f"{row.peak_mib:,.0f}"
        body.append([*load, *speed, *ratios, memory, values])
    lines = markdown_table(header, body, align="llrrrrrrrl")
    lines.append(
        f"\n{model}; {rows[0].length} positions; medians of {len(rows[0].seconds)} rounds, least and greatest "
        f"ratio in brackets; {machine}."
    )
    return "\n".join(lines) + "\n"
