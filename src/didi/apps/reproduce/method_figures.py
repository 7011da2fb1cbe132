"""Figures of ``didi reproduce --methods``: quality against the number of moves and against time."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from didi.apps.reproduce.cells import Cell
from didi.apps.reproduce.method_measures import Measure, Rows, measures, rows_of
from didi.apps.reproduce.methods import MethodPlan
from didi.apps.reproduce.study import Study
from didi.evaluation.figure import Curve, curves_figure
from didi.evaluation.row import EvaluationRow
from didi.methods import method_of

Place = Callable[[Sequence[EvaluationRow]], float]
"""Function from the rows of all seeds to their position on the horizontal axis."""

SHOWN = "Lines: means over training seeds. Bands: from the lowest seed to the highest. Dashed: teachers."


def figure_1(plan: MethodPlan, study: Study) -> list[str]:
    """Quality of every method against the number of moves."""
    measure = measures(plan, study)[0]
    ticks = plan.settings.nfes
    figure = _figure(plan, study, "figure1-methods.png", _moves, x_label="number of moves", ticks=ticks)
    unshown = " Estimates of 0 or less cannot be shown on the logarithmic axis." if plan.settings.joint else ""
    return [f"![{measure.name} against the number of moves]({figure.name})\n", f"{SHOWN}{unshown}"]


def figure_3(plan: MethodPlan, study: Study) -> list[str]:
    """Quality of every method against the sampling time per sequence."""
    measure, sampling = measures(plan, study)[0], study.sampling
    figure = _figure(plan, study, "figure3-methods.png", _seconds, x_label="seconds per sequence")
    workers = max(study.record(cell)["workers"] for cell in plan.cells if isinstance(cell, Cell))
    beside = f"{workers} one-thread processes were running" if workers > 1 else "one one-thread process was running"
    size = min(sampling.batch_size, sampling.num_samples)
    return [
        f"![{measure.name} against seconds per sequence]({figure.name})\n",
        f"{SHOWN} Points: the numbers of moves of Figure 1, the fewest on the left. Seconds: wall time of sampling "
        f"{sampling.num_samples} sequences in batches of {size}, measured once for each point while {beside}; mean "
        "over seeds. `didi bench` compares times side by side.",
    ]


def _moves(rows: Sequence[EvaluationRow]) -> float:
    return float(rows[0].nfe)


def _seconds(rows: Sequence[EvaluationRow]) -> float:
    return statistics.fmean(row.seconds_per_sequence for row in rows)


def _figure(
    plan: MethodPlan, study: Study, name: str, place: Place, *, x_label: str, ticks: Sequence[int] = ()
) -> Path:
    measure, rows = measures(plan, study)[0], rows_of(plan, study)
    return curves_figure(
        curves(plan, rows, measure, place),
        study.folder / name,
        x_label=x_label,
        y_label=measure.name,
        title=f"{plan.settings.recipe}, {len(plan.seeds)} training seed{'s' if len(plan.seeds) > 1 else ''}",
        ticks=ticks,
    )


def curves(plan: MethodPlan, rows: Rows, measure: Measure, place: Place) -> list[Curve]:
    """Curves of means over seeds, with bands from the lowest to the highest seed.

    Args:
        plan: the comparison.
        rows: all rows.
        measure: measure on the vertical axis.
        place: position on the horizontal axis.
    """
    drawn = []
    for curve in plan.curves:
        by_nfe = rows[curve.name].values()
        values = [[measure.of(row) for row in of_seeds] for of_seeds in by_nfe]
        mean = statistics.geometric_mean if measure.is_ratio else statistics.fmean
        drawn.append(
            Curve(
                name=curve.name,
                group=method_of(plan.configs[curve.method]).name if curve.method else curve.name,
                is_baseline=not curve.method,
                places=[place(of_seeds) for of_seeds in by_nfe],
                means=[mean(of_seeds) for of_seeds in values],
                lows=[min(of_seeds) for of_seeds in values],
                highs=[max(of_seeds) for of_seeds in values],
            )
        )
    return drawn
