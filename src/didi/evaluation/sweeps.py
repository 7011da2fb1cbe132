"""Sweeps of temperature or top-p, and comparison of models at equal entropy."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from didi.evaluation.frontier import frontier_ratio, perplexity_at_entropy
from didi.evaluation.row import DETAILS, EvaluationRow, varying_fields
from didi.markdown import markdown_table

SweptField = Literal["temperature", "top_p"]


class Sweep(NamedTuple):
    """Rows that differ only in ``field``, temperature or top-p, in the order of its values."""

    field: SweptField
    rows: list[EvaluationRow]

    def label(self, *, also: Collection[str] = ()) -> str:
        """Label of the rows without the swept value; it ends with ``top-p`` for a sweep of top-p."""
        swept = ", top-p" if self.field == "top_p" else ""
        return self.rows[0].label(omit=("temperature", "top_p"), also=also) + swept

    @property
    def curve(self) -> list[tuple[float, float]]:
        """(entropy in nats, perplexity) of each row."""
        return [(row.entropy, row.gen_ppl) for row in self.rows]


def sweeps(rows: Sequence[EvaluationRow]) -> list[Sweep]:
    """All sweeps among the rows; a single row of exact sampling is a sweep too.

    A row of exact sampling belongs to a sweep of temperature and, if top-p varies, to a sweep of top-p too.
    """
    fields: tuple[SweptField, ...] = ("temperature", "top_p")
    by_key: dict[tuple[object, ...], Sweep] = {}
    for field, other in zip(fields, reversed(fields), strict=True):
        is_swept = any(getattr(row, field) != 1 for row in rows)
        for row in sorted(rows, key=lambda row: float(getattr(row, field))):
            if getattr(row, other) == 1 and (field == "temperature" or (is_swept and row.nfe)):
                by_key.setdefault(_key(field, row), Sweep(field, [])).rows.append(row)
    return list(by_key.values())


def equal_entropy_table(rows: Sequence[EvaluationRow]) -> str | None:
    """Ratio of the perplexities of each sweep and the first sweep of the same judge at equal entropy, as Markdown.

    Returns:
        The table; None if no two sweeps of two rows or more have the same judge.
    """
    swept = _swept(rows)
    bases = [next(base for base in swept if base.rows[0].judge == sweep.rows[0].judge) for sweep in swept]
    also = details(swept)
    pairs = zip(swept, bases, strict=True)
    return _table([(sweep.label(also=also), sweep, base.label(also=also), base) for sweep, base in pairs])


def details(swept: Sequence[Sweep]) -> list[str]:
    """Fields of ``DETAILS`` in which the sweeps differ; rows that were not sampled do not count."""
    return varying_fields([sweep.rows[0] for sweep in swept if sweep.rows[0].nfe], DETAILS)


def models_at_equal_entropy(models: Mapping[str, Sequence[EvaluationRow]]) -> str | None:
    """Compare sweeps of each model with sweeps of the first model at equal entropy, as a Markdown table.

    Sweeps are compared if role, sampler, number of moves and judge are equal. A sweep of an autoregressive network is
    also compared with all sweeps of diffusion networks of the other model, since its number of moves is its length.

    Returns:
        The table; None if no sweep of a later model can be compared with a sweep of the first.
    """
    (first, rows), *others = models.items()
    bases = _swept(rows)
    swept = [(name, _swept(rows)) for name, rows in others]
    also = details([*bases, *(sweep for _, of_model in swept for sweep in of_model)])
    pairs = [
        (f"{name}: {sweep.label(also=also)}", sweep, first, base)
        for name, of_model in swept
        for sweep in of_model
        for base in bases
        if _key(sweep.field, sweep.rows[0]) == _key(base.field, base.rows[0]) or _is_one_autoregressive(sweep, base)
    ]
    return _table(pairs)


def is_autoregressive(row: EvaluationRow) -> bool:
    """Whether a row was sampled from an autoregressive network."""
    return row.role == "autoregressive"


def _is_one_autoregressive(sweep: Sweep, base: Sweep) -> bool:
    """Whether exactly one of two sweeps of equal field and judge is of an autoregressive network."""
    row, base_row = sweep.rows[0], base.rows[0]
    has_same_judge = (sweep.field, row.judge) == (base.field, base_row.judge)
    return has_same_judge and is_autoregressive(row) != is_autoregressive(base_row)


def _swept(rows: Sequence[EvaluationRow]) -> list[Sweep]:
    """The sweeps of two rows or more."""
    return [sweep for sweep in sweeps(rows) if len(sweep.rows) > 1]


def _key(field: SweptField, row: EvaluationRow) -> tuple[object, ...]:
    """Values that the rows of one sweep share."""
    return field, row.role, row.sampler, row.nfe, row.judge


def _table(pairs: Sequence[tuple[str, Sweep, str, Sweep]]) -> str | None:
    header = ["", "against", "ratio at its exact samples", "mean ratio", "over the entropies that both reach"]
    rows = []
    for label, sweep, base_label, base in pairs:
        if sweep is base:
            continue
        ratio, (low, high) = frontier_ratio(sweep.curve, base.curve)
        exact = next((row for row in sweep.rows if row.temperature == row.top_p == 1), None)
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
