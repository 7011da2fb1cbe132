"""Rows of ``didi bench`` and their table."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from didi.evaluation.row import finite
from didi.markdown import markdown_table

Ratio = tuple[float, float, float]
"""Median, minimum and maximum over the rounds."""
PARTS = ("trunk", "head", "draw", "discriminator", "rest")
"""Parts of a sampler's time, in the order of the table."""


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Median, minimum and maximum of the ratios within each round."""
    ratios = sorted(above / below for above, below in zip(numerators, denominators, strict=True))
    return statistics.median(ratios), ratios[0], ratios[-1]


@dataclass(frozen=True)
class SpeedRow:
    """Measurements of one method on one workload.

    Attributes:
        method: a sampler; ``published``, the published algorithm; ``autoregressive``; or bare network passes.
            ``trunk`` makes the trunk passes of ``ancestral``; ``passes`` adds the vocabulary head at every predicted
            position; ``guided floor`` makes the trunk and discriminator passes of ``guided``, with a second forward
            pass instead of each backward pass.
        variant: numerics of the networks, and whether they are compiled.
        batch_size: number of sequences.
        length: number of positions.
        nfe: number of moves; the length for the autoregressive model.
        seconds: wall time of the batch in each round.
        over_floor: time divided by the time of the bare passes in the same round; None for bare passes and the
            autoregressive model, and if the bare passes were not timed.
        speedup: time of the published algorithm in the same round divided by this time; None if it was not timed.
        peak_mib: peak memory minus the memory before the run, MiB; NaN if it was not measured, as for bare passes.
        shares: shares of the time spent in ``trunk``, ``head``, ``draw``, ``discriminator`` and the ``rest``; empty
            unless the method is a sampler of this library.
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
        """The fields as JSON values; NaN becomes null."""
        return {key: finite(value) for key, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "SpeedRow":
        """The row of a record from ``record()``."""
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
        return cls(**values | {"peak_mib": math.nan if values["peak_mib"] is None else values["peak_mib"]})


def speed_table(rows: Sequence[SpeedRow], *, model: str, machine: str) -> str:
    """The rows as a Markdown table, followed by model, length, number of rounds and machine."""
    header = ["method", "trunk in", "batch", "NFE", "s / sequence", "tokens / s", "over its bare passes"]
    header += ["speed over published", "peak MiB", ", ".join(PARTS)]
    body = []
    for row in rows:
        ratios = [
            "–" if each is None else f"{each[0]:.2f} [{each[1]:.2f}, {each[2]:.2f}]"
            for each in (row.over_floor, row.speedup)
        ]
        shares = ", ".join(f"{row.shares.get(part, 0):.0%}" for part in PARTS) if row.shares else "–"
        workload = [row.method, row.variant, row.batch_size, row.nfe]
        speed = [f"{row.seconds_per_sequence:.3g}", f"{row.tokens_per_second:,.0f}"]
        memory = "–" if math.isnan(row.peak_mib) else f"{row.peak_mib:,.0f}"
        body.append([*workload, *speed, *ratios, memory, shares])
    lines = markdown_table(header, body, align="llrrrrrrrl")
    lines.append(
        f"\n{model}; {rows[0].length} positions; medians of {len(rows[0].seconds)} rounds, least and greatest "
        f"ratio in brackets; {machine}."
    )
    return "\n".join(lines) + "\n"
