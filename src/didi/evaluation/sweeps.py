"""Sweeps of temperature or top-p, and models compared where the entropies of their sweeps meet."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from didi.evaluation.frontier import frontier_ratio, perplexity_at_entropy
from didi.evaluation.row import EvaluationRow

Knob = Literal["temperature", "top_p"]


class Sweep(NamedTuple):
    """Rows that differ in one departure from exact sampling only, in its order."""

    knob: Knob
    rows: list[EvaluationRow]

    @property
    def label(self) -> str:
        """Whose it is."""
        row = self.rows[0]
        parts = [row.role, *([] if row.sampler in ("", "ancestral") else [row.sampler])]
        parts += [f"{row.nfe} NFE"] if row.nfe else []
        return ", ".join(parts) + (", top-p" if self.knob == "top_p" else "")

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
                key = (knob, row.role, row.sampler, row.nfe, row.judge)
                found.setdefault(key, Sweep(knob, [])).rows.append(row)
    return list(found.values())


def equal_entropy_table(rows: Sequence[EvaluationRow]) -> str | None:
    """Each sweep's perplexity over that of the first of the same judge, read at equal entropies, as a Markdown table.

    Returns:
        None where no two sweeps of two rows or more have a judge in common.
    """
    lines = list(_comparisons([sweep for sweep in sweeps(rows) if len(sweep.rows) > 1]))
    if not lines:
        return None
    head = [
        "| | against | ratio at its exact samples | mean ratio | over the entropies that both reach |",
        "|---|---|--:|--:|--:|",
    ]
    note = (
        "\nPerplexity ratios at equal entropy, by interpolation between the points of a sweep, never beyond its ends.\n"
    )
    return "\n".join([*head, *lines, note])


def _comparisons(found: Sequence[Sweep]) -> Iterator[str]:
    for number, ours in enumerate(found):
        base = next(sweep for sweep in found if sweep.rows[0].judge == ours.rows[0].judge)
        if base is found[number]:
            continue
        ratio, (low, high) = frontier_ratio(ours.curve, base.curve)
        exact = next((row for row in ours.rows if row.temperature == row.top_p == 1), None)
        at_exact = math.nan if exact is None else exact.gen_ppl / perplexity_at_entropy(base.curve, exact.entropy)
        told = ["–" if math.isnan(value) else f"{value:.3f}" for value in (at_exact, ratio)]
        span = "none" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
        yield f"| {ours.label} | {base.label} | {told[0]} | {told[1]} | {span} |"
