"""Sweeps of temperature or top-p, and models compared where the entropies of their sweeps meet."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from didi.evaluation.frontier import frontier_ratio, perplexity_at_entropy
from didi.evaluation.row import DETAILS, EvaluationRow, varying_fields
from didi.markdown import markdown_table

Knob = Literal["temperature", "top_p"]


class Sweep(NamedTuple):
    """Rows that differ in their temperature or top-p only, in its order."""

    knob: Knob
    rows: list[EvaluationRow]

    def label(self, *, also: Collection[str] = ()) -> str:
        """Label of its rows without the swept value; a sweep of top-p says so."""
        swept = ", top-p" if self.knob == "top_p" else ""
        return self.rows[0].label(omit=("temperature", "top_p"), also=also) + swept

    @property
    def curve(self) -> list[tuple[float, float]]:
        """(entropy in nats, perplexity) of each row."""
        return [(row.entropy, row.gen_ppl) for row in self.rows]


def sweeps(rows: Sequence[EvaluationRow]) -> list[Sweep]:
    """Every sweep among the rows, a single exact row too; that of exact sampling belongs to either kind of sweep."""
    knobs: tuple[Knob, ...] = ("temperature", "top_p")
    found: dict[tuple[object, ...], Sweep] = {}
    for knob, other in zip(knobs, reversed(knobs), strict=True):
        is_swept = any(getattr(row, knob) != 1 for row in rows)
        for row in sorted(rows, key=lambda row: float(getattr(row, knob))):
            if getattr(row, other) == 1 and (knob == "temperature" or (is_swept and row.nfe)):
                found.setdefault(_kind(knob, row), Sweep(knob, [])).rows.append(row)
    return list(found.values())


def equal_entropy_table(rows: Sequence[EvaluationRow]) -> str | None:
    """Each sweep's perplexity over that of the first of the same judge, read at equal entropies, as a Markdown table.

    Returns:
        None where no two sweeps of two rows or more have a judge in common.
    """
    found = _swept(rows)
    bases = [next(base for base in found if base.rows[0].judge == ours.rows[0].judge) for ours in found]
    also = details(found)
    pairs = zip(found, bases, strict=True)
    return _table([(ours.label(also=also), ours, base.label(also=also), base) for ours, base in pairs])


def details(found: Sequence[Sweep]) -> list[str]:
    """Fields that distinguish the sweeps beyond role, sampler and NFE; data and anchors do not count."""
    return varying_fields([sweep.rows[0] for sweep in found if sweep.rows[0].nfe], DETAILS)


def models_at_equal_entropy(models: Mapping[str, Sequence[EvaluationRow]]) -> str | None:
    """The sweeps of each model over those of the first one, of equal role, sampler, moves and judge, as such a table.

    A sweep of an autoregressive network, whose number of moves is its length, is compared with those of every diffusion
    network of the other model too.

    Returns:
        None where no sweep of a later model has one like it among those of the first.
    """
    (first, rows), *others = models.items()
    bases = _swept(rows)
    swept = [(name, _swept(rows)) for name, rows in others]
    also = details([*bases, *(ours for _, found in swept for ours in found)])
    pairs = [
        (f"{name}: {ours.label(also=also)}", ours, first, base)
        for name, found in swept
        for ours in found
        for base in bases
        if _kind(ours.knob, ours.rows[0]) == _kind(base.knob, base.rows[0]) or _is_baseline_of(ours, base)
    ]
    return _table(pairs)


def is_autoregressive(row: EvaluationRow) -> bool:
    """Whether a row is of a left-to-right network."""
    return row.role == "autoregressive"


def _is_baseline_of(ours: Sweep, base: Sweep) -> bool:
    """Whether one of two sweeps of one judge is of an autoregressive network and the other is not."""
    one, other = ours.rows[0], base.rows[0]
    is_alike = (ours.knob, one.judge) == (base.knob, other.judge)
    return is_alike and is_autoregressive(one) != is_autoregressive(other)


def _swept(rows: Sequence[EvaluationRow]) -> list[Sweep]:
    return [sweep for sweep in sweeps(rows) if len(sweep.rows) > 1]


def _kind(knob: Knob, row: EvaluationRow) -> tuple[object, ...]:
    """What the rows of one sweep share."""
    return knob, row.role, row.sampler, row.nfe, row.judge


def _table(pairs: Sequence[tuple[str, Sweep, str, Sweep]]) -> str | None:
    header = ["", "against", "ratio at its exact samples", "mean ratio", "over the entropies that both reach"]
    rows = []
    for label, ours, base_label, base in pairs:
        if ours is base:
            continue
        ratio, (low, high) = frontier_ratio(ours.curve, base.curve)
        exact = next((row for row in ours.rows if row.temperature == row.top_p == 1), None)
        at_exact = math.nan if exact is None else exact.gen_ppl / perplexity_at_entropy(base.curve, exact.entropy)
        ratios = ["–" if math.isnan(value) else f"{value:.3f}" for value in (at_exact, ratio)]
        span = "none" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
        rows.append([label, base_label, *ratios, span])
    if not rows:
        return None
    lines = markdown_table(header, rows, num_left=2)
    lines.append(
        "\nPerplexity ratios at equal entropy, by interpolation between the points of a sweep, never beyond its ends.\n"
    )
    return "\n".join(lines)
