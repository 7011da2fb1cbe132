"""Figures: perplexity against NFE, time or entropy, always with the entropy; curves with bands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from didi.evaluation.row import DETAILS, EvaluationRow, varying_fields
from didi.evaluation.sweeps import details, sweeps
from didi.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

ROLE_COLOURS = {
    "teacher": "#0072B2",
    "student": "#D55E00",
    "autoregressive": "#009E73",
    "data": "#595959",
}  # Okabe and Ito: also distinguishable with colour blindness
SPARE_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C510A", "#7B68EE")
SAMPLER_STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))  # marker and dash


def perplexity_figure(rows: Sequence[EvaluationRow], path: Path) -> Path:
    """Draw perplexity and, in a panel below, entropy against NFE as a PNG; bars are 95% intervals.

    Each role, sampler, temperature and top-p has a line, as has each value of a ``DETAILS`` field in which sampled rows
    differ. Rows with ``nfe`` 0, such as real data, are horizontal lines with a band.
    """
    from matplotlib.ticker import NullLocator

    figure, top, bottom = _panels_against("nfe", rows)
    nfes = sorted({row.nfe for row in rows if row.nfe})
    bottom.set_xticks(nfes, [str(nfe) for nfe in nfes])
    bottom.xaxis.set_minor_locator(NullLocator())
    bottom.set_xlabel("network function evaluations (NFE)", fontsize=9)
    return save_figure(figure, top, path)


def latency_figure(rows: Sequence[EvaluationRow], path: Path) -> Path:
    """The figure of ``perplexity_figure`` against seconds per sequence; points are labelled with their NFE."""
    figure, top, bottom = _panels_against("seconds_per_sequence", rows)
    for row in rows:
        if row.nfe:
            at = (row.seconds_per_sequence, row.gen_ppl)
            top.annotate(f"{row.nfe}", at, (4, 4), textcoords="offset points", fontsize=7)
    _set_plain_log_ticks(bottom.xaxis)
    bottom.set_xlabel("seconds per sequence; small numbers are NFE", fontsize=9)
    return save_figure(figure, top, path)


def frontier_figure(rows: Sequence[EvaluationRow], path: Path) -> Path:
    """Draw perplexity against entropy as a PNG, with a line for each sweep of temperature or top-p.

    Large markers are exact sampling. The lower of two curves is the better model at every entropy that both reach,
    whatever the temperature. Rows with ``nfe`` 0, such as data, are crosses.
    """
    figure = new_figure(6.4, 5.0)
    axes = figure.subplots()
    axes.set(yscale="log")
    colours = _colours(rows)
    num_drawn: dict[str, int] = {}  # sweeps drawn so far, by role
    all_sweeps = sweeps(rows)
    also = details(all_sweeps)
    for sweep in all_sweeps:
        role = sweep.rows[0].role
        entropies, values = zip(*sweep.curve, strict=True)
        if not sweep.rows[0].nfe:
            axes.plot(entropies, values, "P", color=colours[role], markersize=9, label=sweep.label())
            continue
        marker, dash = SAMPLER_STYLES[num_drawn.setdefault(role, 0) % len(SAMPLER_STYLES)]
        num_drawn[role] += 1
        axes.plot(entropies, values, dash, color=colours[role], linewidth=1.6, label=sweep.label(also=also))
        for row in sweep.rows:
            value = getattr(row, sweep.field)
            size = 9 if value == 1 else 5
            axes.plot([row.entropy] * 2, row.gen_ppl_ci, "-", color=colours[role], linewidth=1.0)
            axes.plot(row.entropy, row.gen_ppl, marker, color=colours[role], markersize=size, markeredgecolor="white")
            axes.annotate(f"{value:g}", (row.entropy, row.gen_ppl), (4, -9), textcoords="offset points",
                          fontsize=6.5, color=colours[role])  # fmt: skip
    tidy(axes)
    _set_plain_log_ticks(axes.yaxis)
    judges = ", ".join(dict.fromkeys(row.judge for row in rows))
    axes.set_title(f"Generative perplexity, judge {judges}; numbers are temperatures or top-p", loc="left", fontsize=9)
    axes.set_xlabel("unigram entropy within a sample, nats", fontsize=9)
    return save_figure(figure, axes, path)


@dataclass(frozen=True)
class Curve:
    """A line of ``curves_figure``.

    Attributes:
        name: label in the legend.
        group: curves of one group have one colour.
        is_baseline: whether the curve is drawn grey and dashed, behind the other curves.
        places: positions on the horizontal axis, positive.
        means: values; a point with a value or an end that is not positive and finite is left out.
        lows: lower ends of the band.
        highs: upper ends of the band.
    """

    name: str
    group: str
    is_baseline: bool
    places: Sequence[float]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


METHOD_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A")
"""Colours of groups that are not baselines, in the order of the groups (all but the last from Okabe and Ito)."""
BASELINE_GREYS = ("#404040", "#8C8C8C")


def curves_figure(
    curves: Sequence[Curve], path: Path, *, x_label: str, y_label: str, title: str, ticks: Sequence[int] = ()
) -> Path:
    """Draw curves with bands on two log axes as a PNG.

    Args:
        curves: the curves.
        path: path of the file.
        x_label: label of the horizontal axis.
        y_label: label of the vertical axis.
        title: title above the axes.
        ticks: ticks of the horizontal axis; by default those of a log axis.
    """
    from matplotlib.ticker import NullLocator

    figure = new_figure(6.4, 4.8)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log")
    groups = [
        list(dict.fromkeys(curve.group for curve in curves if curve.is_baseline == is_baseline))
        for is_baseline in (False, True)
    ]
    last_number: dict[str, int] = {}  # number within its group of the last curve drawn
    for curve in curves:
        palette = BASELINE_GREYS if curve.is_baseline else METHOD_COLOURS
        colour = palette[groups[curve.is_baseline].index(curve.group) % len(palette)]
        number = last_number[curve.group] = last_number.get(curve.group, -1) + 1
        _draw_curve(axes, curve, colour, SAMPLER_STYLES[number % len(SAMPLER_STYLES)])
    tidy(axes)
    axes.grid(axis="x", color="0.95", linewidth=0.8)
    _set_plain_log_ticks(axes.yaxis)
    if ticks:
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        _set_plain_log_ticks(axes.xaxis)
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(x_label, fontsize=10)
    axes.set_ylabel(y_label, fontsize=10)
    return save_figure(figure, axes, path, num_columns=3)


def _draw_curve(axes: "Axes", curve: Curve, colour: str, style: tuple[str, str]) -> None:
    """Draw a line with a band; for a single point, a larger marker with a bar."""
    values = zip(curve.places, curve.means, curve.lows, curve.highs, strict=True)
    points = [point for point in values if all(math.isfinite(value) and value > 0 for value in point)]
    if not points:
        return
    places, means, lows, highs = (list(column) for column in zip(*points, strict=True))
    marker, dash = style
    is_single = len(points) == 1
    axes.plot(places, means, "--" if curve.is_baseline else dash, marker="*" if is_single else marker, color=colour,
              linewidth=1.4 if curve.is_baseline else 1.8, markersize=12 if is_single else 5.5, label=curve.name,
              markeredgecolor="white", zorder=2 if curve.is_baseline else 3)  # fmt: skip
    if is_single:
        axes.plot(places * 2, [lows[0], highs[0]], "-_", color=colour, linewidth=1.2, markersize=7)
    elif not curve.is_baseline:
        axes.fill_between(places, lows, highs, color=colour, alpha=0.18, linewidth=0)


def _panels_against(x: str, rows: Sequence[EvaluationRow]) -> "tuple[Figure, Axes, Axes]":
    """A panel of perplexity above a panel of entropy, both against the field ``x`` on a log axis."""
    figure = new_figure(6.4, 5.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
    top.set(xscale="log", yscale="log")
    drawn, levels = [row for row in rows if row.nfe], [row for row in rows if not row.nfe]
    colours = _colours(rows)
    markers = dict.fromkeys(row.sampler for row in drawn)
    styles = {sampler: SAMPLER_STYLES[i % len(SAMPLER_STYLES)] for i, sampler in enumerate(markers)}
    for axes, field in ((top, "gen_ppl"), (bottom, "entropy")):
        for label, line in _lines(drawn).items():
            _draw_line(axes, line, x, field, colours[line[0].role], *styles[line[0].sampler], label)
        for row in levels:
            _draw_level(axes, row, field, colours[row.role], row.label(also=varying_fields(levels, DETAILS)))
        tidy(axes)
    _set_plain_log_ticks(top.yaxis)
    judges = ", ".join(dict.fromkeys(row.judge for row in rows))
    top.set_title(f"Generative perplexity, judge {judges}", loc="left", fontsize=9)
    bottom.set_title("Unigram entropy within a sample, nats", loc="left", fontsize=9)
    return figure, top, bottom


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure on white, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=200, layout="constrained", facecolor="white")


def tidy(axes: "Axes") -> None:
    """Leave out the top and right border, and draw a light horizontal grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def save_figure(figure: "Figure", axes: "Axes", path: Path, *, num_columns: int = 2) -> Path:
    """Draw the legend of ``axes`` above the figure, and write the file."""
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=num_columns, frameon=False, fontsize=9
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _colours(rows: Sequence[EvaluationRow]) -> dict[str, str]:
    """A colour for each role; roles of ``ROLE_COLOURS`` have the same colour in every figure."""
    others = [role for role in dict.fromkeys(row.role for row in rows) if role not in ROLE_COLOURS]
    return ROLE_COLOURS | {role: SPARE_COLOURS[i % len(SPARE_COLOURS)] for i, role in enumerate(others)}


def _lines(rows: Sequence[EvaluationRow]) -> dict[str, list[EvaluationRow]]:
    """Rows of each line, in order of NFE, by the label of the line."""
    also = varying_fields(rows, DETAILS)
    lines: dict[str, list[EvaluationRow]] = {}
    for row in sorted(rows, key=lambda row: row.nfe):
        lines.setdefault(row.label(omit=("nfe",), also=also), []).append(row)
    return lines


def _draw_line(
    axes: "Axes", line: Sequence[EvaluationRow], x: str, field: str, colour: str, marker: str, dash: str, label: str
) -> None:
    places, values = [getattr(row, x) for row in line], [getattr(row, field) for row in line]
    axes.plot(places, values, dash, marker=marker, color=colour, linewidth=1.8, markeredgecolor="white", label=label)
    for place, row in zip(places, line, strict=True):
        axes.plot([place, place], getattr(row, f"{field}_ci"), "-_", color=colour, linewidth=1.2, markersize=7)


def _draw_level(axes: "Axes", row: EvaluationRow, field: str, colour: str, label: str) -> None:
    axes.axhline(getattr(row, field), color=colour, linewidth=1.2, linestyle=(0, (4, 3)), label=label)
    axes.axhspan(*getattr(row, f"{field}_ci"), color=colour, alpha=0.12, linewidth=0)


def _set_plain_log_ticks(axis: "Axis") -> None:
    """Label a log axis with plain numbers at round positions, also if it spans less than a decade."""
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else AutoLocator())
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
