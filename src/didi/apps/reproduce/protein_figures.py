"""Drawings of ``didi reproduce --scale proteins``: scores against moves, and sequences with residue scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from didi.data.fasta import LINE
from didi.evaluation.figure import ROLE_COLOURS, SAMPLER_STYLES, new_figure, save_figure, tidy
from didi.evaluation.frontier import Interval
from didi.files import replacing

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLDDT = "pLDDT"
THRESHOLDS = {PLDDT: 70.0}
"""Score above which a unit is called confident."""
PLDDT_EDGES, PLDDT_COLOURS = (0, 50, 70, 90, 100), ("#FF7D45", "#FFDB13", "#65CBF3", "#0053D6")
"""Colours of pLDDT as in the AlphaFold database."""
NATS_RANGE = 3.0
"""Residue scores in nats outside [-NATS_RANGE, NATS_RANGE] have the colours of the ends."""
ANGSTROM, LARGEST_ERROR = "Å", 2.0
"""Predicted errors in Å above LARGEST_ERROR have the colour of the end; they are not negative."""
PROBABILITY, LEAST_CONFIDENCE = "probability", 1 / 3
"""Probabilities of the most probable of three classes are not below LEAST_CONFIDENCE."""
LINE_INCHES, TITLE_INCHES, TRACE_INCHES, BAR_INCHES, END_INCHES = 0.17, 0.3, 1.25, 0.42, 0.12


@dataclass(frozen=True)
class Line:
    """A line of Figure 5 at one length.

    Attributes:
        role: ``teacher`` or ``student``.
        sampler: name of the sampler.
        nfes: numbers of moves, ascending.
        means: mean score at each number of moves.
        intervals: 95% interval of each mean; NaN if there is none.
    """

    role: str
    sampler: str
    nfes: Sequence[int]
    means: Sequence[float]
    intervals: Sequence[Interval]


@dataclass(frozen=True)
class Example:
    """A sequence of Figure 6 or 7.

    Attributes:
        title: title above the sequence.
        residues: residues, one letter each.
        scores: score of each residue; None if the judge has no residue scores.
        trace: coordinates x, y, z of the alpha carbon of each residue in Å; None if the judge predicts no structure.
    """

    title: str
    residues: str
    scores: Sequence[float] | None = None
    trace: Sequence[Sequence[float]] | None = None


def score_figure(
    lines: Mapping[int, Sequence[Line]], levels: Mapping[int, Mapping[str, float]], path: Path, *, unit: str
) -> Path:
    """Draw scores against the number of moves into ``path``, a PNG with a panel for each length.

    The vertical axis reaches over all means and levels; intervals that are much wider are cut.

    Args:
        lines: lines of each panel, by the number of residues.
        levels: by the number of residues, mean scores of control sets by name, drawn as horizontal lines.
        path: PNG file.
        unit: unit of the score.
    """
    num_columns = min(3, len(lines))
    num_rows = -(-len(lines) // num_columns)
    figure = new_figure(max(2.7 * num_columns, 4.2), 2.3 * num_rows + 0.7)
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    samplers = list(dict.fromkeys(line.sampler for drawn in lines.values() for line in drawn))
    styles = {name: SAMPLER_STYLES[n % len(SAMPLER_STYLES)] for n, name in enumerate(samplers)}
    for axes, (length, drawn) in zip(panels, lines.items(), strict=False):
        for number, line in enumerate(drawn):
            _draw_line(axes, line, *styles[line.sampler], shift=1.035 ** (2 * number - len(drawn) + 1))
        for (name, level), dash in zip(levels.get(length, {}).items(), ("--", ":"), strict=False):
            axes.axhline(level, color=ROLE_COLOURS["data"], linewidth=1.1, linestyle=dash, label=f"{name} (held out)")
        if unit in THRESHOLDS:
            label = f"confident, above {THRESHOLDS[unit]:g}"
            axes.axhline(THRESHOLDS[unit], color="0.6", linewidth=0.8, linestyle="-.", label=label)
        tidy(axes)
        axes.set_title(f"{length} residues", loc="left", fontsize=9)
        axes.tick_params(labelsize=8)
    _set_axes(panels, lines, levels)
    for axes in panels[len(lines) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(lines) - num_columns) : len(lines)]:  # the lowest of each column
        axes.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel("number of moves", fontsize=9)
    figure.supylabel(f"score, {unit}", fontsize=9)
    return save_figure(figure, panels[0], path, num_columns=4 if num_columns > 2 else 2)


def _draw_line(axes: "Axes", line: Line, marker: str, dash: str, *, shift: float) -> None:
    """Means and bars of intervals, moved sideways by the factor ``shift`` so that bars of several lines are apart."""
    colour, places = ROLE_COLOURS[line.role], [nfe * shift for nfe in line.nfes]
    axes.plot(places, line.means, dash, marker=marker, color=colour, linewidth=1.6, markersize=4.5,
              markeredgecolor="white", markeredgewidth=0.6, label=f"{line.role}, {line.sampler}")  # fmt: skip
    for place, ends in zip(places, line.intervals, strict=True):
        axes.plot([place, place], ends, "-_", color=colour, linewidth=1.0, markersize=4, alpha=0.7)


def _set_axes(
    panels: "Sequence[Axes]", lines: Mapping[int, Sequence[Line]], levels: Mapping[int, Mapping[str, float]]
) -> None:
    """Ticks at the numbers of moves, and the range of the scores."""
    from matplotlib.ticker import NullLocator

    drawn = [line for of_length in lines.values() for line in of_length]
    nfes = sorted({nfe for line in drawn for nfe in line.nfes})
    values = [value for line in drawn for value in line.means]
    values += [value for of_length in levels.values() for value in of_length.values()]
    low, high = min(values), max(values)
    margin = (high - low) or 1.0
    ends = [end for line in drawn for interval in line.intervals for end in interval if not math.isnan(end)]
    low = max(low - 0.3 * margin, min([low, *ends])) - 0.05 * margin
    high = min(high + 0.3 * margin, max([high, *ends])) + 0.05 * margin
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks(nfes, [str(nfe) for nfe in nfes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(low, high)


def examples_figure(
    examples: Sequence[Example], path: Path, *, unit: str | None, is_higher_better: bool = True
) -> Path:
    """Draw sequences in lines of 60 residues with coloured scores, and traces beside them, into ``path``, a PNG.

    Args:
        examples: sequences, drawn one below the other.
        path: PNG file.
        unit: unit of the residue scores; None if there are none.
        is_higher_better: whether a larger residue score is better.
    """
    has_traces = any(example.trace is not None for example in examples)
    lengths = [-(-len(example.residues) // LINE) * LINE_INCHES for example in examples]
    heights = [max(TITLE_INCHES + inches, TRACE_INCHES if has_traces else 0) for inches in lengths]
    width, text_width = (9.2 if has_traces else 7.0), 6.1
    bar = BAR_INCHES if unit is not None else 0.0
    total = sum(heights) + bar + END_INCHES
    figure = new_figure(width, total)
    figure.set_layout_engine("none")
    colours = None if unit is None else _colours(unit, is_higher_better=is_higher_better)
    top = total - bar
    for example, height, inches in zip(examples, heights, lengths, strict=True):
        below = (top - TITLE_INCHES - inches) / total
        axes = figure.add_axes((0.5 / width, below, text_width / width, inches / total))
        _draw_residues(axes, example, colours)
        figure.text(0.5 / width, (top - TITLE_INCHES + 0.06) / total, example.title, fontsize=8, va="bottom")
        if example.trace is not None and len(example.trace) > 1:
            box = ((text_width + 0.6) / width, (top - height) / total, 2.4 / width, height / total)
            _draw_trace(figure, box, example, colours)
        top -= height
    if unit is not None and colours is not None:
        _draw_bar(figure, (0.5 / width, (total - 0.24) / total, 2.4 / width, 0.11 / total), colours, unit)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _colours(unit: str, *, is_higher_better: bool) -> Any:
    """Colours of the scores of residues, a ``ScalarMappable``."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize

    if unit == PLDDT:
        return ScalarMappable(BoundaryNorm(PLDDT_EDGES, len(PLDDT_COLOURS)), ListedColormap(PLDDT_COLOURS))
    if unit == ANGSTROM:
        return ScalarMappable(Normalize(0, LARGEST_ERROR), colormaps["RdYlBu_r"])
    if unit == PROBABILITY:
        return ScalarMappable(Normalize(LEAST_CONFIDENCE, 1), colormaps["YlGnBu"])
    palette = colormaps["RdBu" if is_higher_better else "RdBu_r"]
    return ScalarMappable(Normalize(-NATS_RANGE, NATS_RANGE), palette)


def _draw_residues(axes: "Axes", example: Example, colours: Any) -> None:
    """Letters on the colour of their scores, the number of the first residue of each line beside it."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    num_lines = -(-len(example.residues) // LINE)
    boxes, fills = [], []
    for number, letter in enumerate(example.residues):
        row, column = divmod(number, LINE)
        fill = (1.0, 1.0, 1.0) if example.scores is None or colours is None else colours.to_rgba(example.scores[number])
        boxes.append(Rectangle((column, row), 1, 1))
        fills.append(fill)
        luminance = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2]
        axes.text(column + 0.5, row + 0.53, letter, ha="center", va="center", fontsize=6.5, family="monospace",
                  color="white" if luminance < 0.5 else "#1a1a1a")  # fmt: skip
    axes.add_collection(PatchCollection(boxes, facecolors=fills, linewidths=0))
    axes.set(xlim=(0, LINE), ylim=(num_lines, 0))
    axes.set_yticks([row + 0.5 for row in range(num_lines)], [str(row * LINE + 1) for row in range(num_lines)])
    axes.set_xticks([])
    axes.tick_params(left=False, labelsize=6.5, pad=2, labelcolor="0.4")
    axes.spines[:].set_visible(False)


def _draw_trace(figure: "Figure", box: tuple[float, float, float, float], example: Example, colours: Any) -> None:
    """The chain of alpha carbons in its principal axes, each bond coloured as its first residue."""
    import numpy as np
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    axes: Any = figure.add_axes(box, projection="3d")
    centred = in_principal_axes(np.asarray(example.trace, dtype=float))  # the longest axis lies flat
    has_scores = example.scores is not None and colours is not None
    fills = colours.to_rgba(np.asarray(example.scores[:-1])) if has_scores and example.scores is not None else "0.4"
    bonds = np.stack([centred[:-1], centred[1:]], 1)
    axes.add_collection3d(Line3DCollection(bonds, colors=fills, linewidths=1.6, capstyle="round", clip_on=False))
    reach = max(float(np.abs(centred).max()), 1.0)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
    axes.set_box_aspect((1, 1, 1), zoom=1.4)
    axes.view_init(elev=25, azim=-60)
    axes.set_axis_off()


def in_principal_axes(places: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Positions (l x 3) relative to their mean, rotated into their principal axes, and not mirrored."""
    import numpy as np

    centred = places - places.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
    axes[:, 2] *= np.linalg.det(axes)  # 1 or -1: a mirrored protein is another molecule
    turned: np.ndarray[Any, Any] = centred @ axes
    return turned


def _draw_bar(figure: "Figure", box: tuple[float, float, float, float], colours: Any, unit: str) -> None:
    axes = figure.add_axes(box)
    extend = {PLDDT: "neither", PROBABILITY: "neither", ANGSTROM: "max"}.get(unit, "both")
    bar = figure.colorbar(colours, cax=axes, orientation="horizontal", extend=extend)
    bar.ax.tick_params(labelsize=6.5, length=2, pad=1)
    bar.outline.set_visible(False)
    left, bottom, width, height = box
    figure.text(left + width * 1.06, bottom + height / 2, f"score of each residue, {unit}", fontsize=7, va="center")
