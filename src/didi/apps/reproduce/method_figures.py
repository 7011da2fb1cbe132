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
"""Of the rows of all seeds on the horizontal axis."""

SHOWN = "Lines are means over training seeds, bands reach from the lowest to the highest of them; teachers are dashed."


def figure_1(plan: MethodPlan, study: Study) -> list[str]:
    """Quality of every method against the number of moves."""
    used = measures(plan, study)[0]
    ticks = plan.world.nfes
    figure = _figure(plan, study, "figure1-methods.png", _moves, x_label="number of moves", ticks=ticks)
    unshown = " Estimates of 0 or less have no place on a log axis." if plan.world.joint else ""
    return [f"![{used.name} against the number of moves]({figure.name})\n", f"{SHOWN}{unshown}"]


def figure_3(plan: MethodPlan, study: Study) -> list[str]:
    """Quality of every method against the time that a sequence takes."""
    used, sampling = measures(plan, study)[0], study.sampling
    figure = _figure(plan, study, "figure3-methods.png", _seconds, x_label="seconds per sequence")
    workers = max(study.record(cell)["workers"] for cell in plan.cells if isinstance(cell, Cell))
    beside = f"{workers} processes of one thread worked" if workers > 1 else "one process of one thread worked"
    size = min(sampling.batch_size, sampling.num_samples)
    return [
        f"![{used.name} against seconds per sequence]({figure.name})\n",
        f"{SHOWN} Points are the numbers of moves of Figure 1, the fewest on the left. Seconds are the wall time of "
        f"sampling {sampling.num_samples} sequences in batches of {size}, once for each cell, while {beside}; the mean "
        "over seeds. For times taken side by side there is `didi bench`.",
    ]


def _moves(rows: Sequence[EvaluationRow]) -> float:
    return float(rows[0].nfe)


def _seconds(rows: Sequence[EvaluationRow]) -> float:
    return statistics.fmean(row.seconds_per_sequence for row in rows)


def _figure(
    plan: MethodPlan, study: Study, name: str, place: Place, *, x_label: str, ticks: Sequence[int] = ()
) -> Path:
    used, found = measures(plan, study)[0], rows_of(plan, study)
    return curves_figure(
        curves(plan, found, used, place),
        study.folder / name,
        x_label=x_label,
        y_label=used.name,
        title=f"{plan.world.recipe}, {len(plan.seeds)} training seed{'s' if len(plan.seeds) > 1 else ''}",
        ticks=ticks,
    )


def curves(plan: MethodPlan, found: Rows, measure: Measure, place: Place) -> list[Curve]:
    """What is drawn: means over seeds with the range of the seeds.

    Args:
        plan: of the comparison.
        found: all rows.
        measure: the vertical axis.
        place: on the horizontal axis.
    """
    drawn = []
    for curve in plan.curves:
        rows = found[curve.name].values()
        values = [[measure.of(row) for row in of_seeds] for of_seeds in rows]
        mean = statistics.geometric_mean if measure.is_ratio else statistics.fmean
        drawn.append(
            Curve(
                name=curve.name,
                group=method_of(plan.configs[curve.method]).name if curve.method else curve.name,
                is_baseline=not curve.method,
                places=[place(of_seeds) for of_seeds in rows],
                means=[mean(of_seeds) for of_seeds in values],
                lows=[min(of_seeds) for of_seeds in values],
                highs=[max(of_seeds) for of_seeds in values],
            )
        )
    return drawn
