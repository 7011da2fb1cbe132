"""The tables and verdicts of docs/results/tiny-news.md; see ``tiny_news``."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from tiny_news_cells import (
    DATA,
    GUIDED_8,
    GUIDED_NFES,
    NFES,
    STUDENT_8,
    TEACHER_8,
    TEACHER_32,
    TEACHER_128,
    TIMED_ROUNDS,
    TWIN,
    Cell,
    Timing,
)

from didi.evaluation.frontier import frontier_ratio, perplexity_at_entropy
from didi.evaluation.row import EvaluationRow
from didi.markdown import markdown_table


def sweep(rows: dict[str, EvaluationRow], cell: Cell) -> list[tuple[float, float]]:
    """(entropy, perplexity) at each temperature of the cell's model and NFE."""
    kind = (cell.role, cell.sampler, cell.nfe)
    return [(row.entropy, row.gen_ppl) for row in rows.values() if (row.role, row.sampler, row.nfe) == kind]


def ratios_at_entropies(rows: dict[str, EvaluationRow], ours: Cell, theirs: Cell) -> list[float]:
    """Ratios of perplexities at the entropies of our sweep that theirs reaches; that of our exact samples comes first.

    NaN stands for the exact samples, those at temperature 1, where theirs does not reach their entropy.
    """
    exact = (rows[ours.name].entropy, rows[ours.name].gen_ppl)
    points = [exact, *(point for point in sweep(rows, ours) if point != exact)]
    ratios = [ppl / perplexity_at_entropy(sweep(rows, theirs), entropy) for entropy, ppl in points]
    return ratios[:1] + [ratio for ratio in ratios[1:] if math.isfinite(ratio)]


def verdicts(rows: dict[str, EvaluationRow]) -> list[str]:
    """The claims of this page as a table: figure, bound, and whether it holds."""
    data, teacher, student, guided = (rows[cell.name] for cell in (DATA, TEACHER_128, STUDENT_8, GUIDED_8))
    body = []

    def claim(text: str, figure: float, bound: float, *, is_upper: bool = True) -> None:
        holds = figure <= bound if is_upper else figure >= bound
        verdict = "yes" if holds else "**no**"
        if math.isnan(figure):
            verdict = "**not measured**: the entropies do not meet"
        body.append([text, f"{figure:.4g}", f"{'≤' if is_upper else '≥'} {bound:g}", verdict])

    claim("teacher at 128 NFE: perplexity over that of held-out news", teacher.gen_ppl / data.gen_ppl, 4)
    claim("student at 8 NFE: perplexity over the teacher's at 128", student.gen_ppl / teacher.gen_ppl, 1)
    claim("the same two: entropy over the teacher's", student.entropy / teacher.entropy, 0.97, is_upper=False)
    for theirs in (TEACHER_8, TEACHER_32, TEACHER_128):
        ratios = ratios_at_entropies(rows, STUDENT_8, theirs)
        mean, (low, high) = frontier_ratio(sweep(rows, STUDENT_8), sweep(rows, theirs))
        claim(f"student at 8 NFE over teacher at {theirs.nfe} at the entropy of its exact samples", ratios[0], 1)
        claim(f"the same, worst of {len(ratios)} temperatures", max(ratios, key=lambda x: (math.isnan(x), x)), 1)
        claim(f"the same, mean over the entropies {low:.2f} to {high:.2f} that both reach", mean, 1)
        (ratio, *_) = ratios_at_entropies(rows, GUIDED_8, theirs)
        claim(f"guided student at 8 NFE over teacher at {theirs.nfe} at the entropy of its exact samples", ratio, 1)
    is_alike = abs(guided.entropy / student.entropy - 1) <= 0.02
    saved = 1 - guided.gen_ppl / student.gen_ppl if is_alike else math.nan
    claim("guidance at 8 NFE: perplexity saved, entropies within 2%", saved, 0.15, is_upper=False)
    saved = 1 - perplexity_at_entropy(sweep(rows, GUIDED_8), student.entropy) / student.gen_ppl
    claim("the same, read at the plain student's very entropy", saved, 0.15, is_upper=False)
    lines = markdown_table(["claim", "figure", "bound", "holds"], body, align="lrrl")
    lines.append(
        f"\nGuidance at 8 NFE: {guided.discriminator_passes:.1f} discriminator passes a sequence; at temperature 1 its "
        f"entropy is {guided.entropy:.3f}, the plain student's {student.entropy:.3f}."
    )
    return lines


def against_twin(rows: dict[str, EvaluationRow], timing: Timing) -> list[str]:
    """The fewest passes with which the student is as good as the autoregressive twin at equal entropy."""
    lines = []
    for sampler in ("ancestral", "guided"):
        title = f"**Student, {sampler}, against the autoregressive twin:**"
        meeting, missed = None, []
        for nfe in NFES if sampler == "ancestral" else GUIDED_NFES:
            row = rows[Cell("student", sampler, nfe).name]
            bar = perplexity_at_entropy(sweep(rows, TWIN), row.entropy)
            if row.gen_ppl <= bar:
                meeting = (nfe, row, bar)
                break
            missed.append(f"{row.gen_ppl:.0f} against {bar:.0f} at {nfe} NFE")
        if meeting is None:
            lines.append(f"{title} at no NFE as good at equal entropy ({'; '.join(missed)}).")
            continue
        nfe, row, bar = meeting
        ratios = {
            size: sorted(
                theirs / ours
                for ours, theirs in zip(
                    timing[Cell("student", sampler, nfe).name][str(size)], timing[TWIN.name][str(size)], strict=True
                )
            )
            for size in TIMED_ROUNDS
        }
        ratios = ", ".join(
            f"{statistics.median(found):.1f} [{found[0]:.1f}, {found[-1]:.1f}] at batch {size}"
            for size, found in ratios.items()
        )
        lines.append(
            f"{title} as good from {nfe} NFE on (perplexity "
            f"{row.gen_ppl:.0f} against {bar:.0f} at entropy {row.entropy:.2f}). Its tokens per second over the "
            f"twin's, median and range of the rounds: {ratios}."
        )
    return ["\n\n".join(lines)]


def timing_table(rows: dict[str, EvaluationRow], timing: Timing) -> list[str]:
    """Milliseconds a sequence: median and range of the rounds."""
    header = ["model", "sampler", "NFE", *(f"ms / sequence, batch {size}" for size in TIMED_ROUNDS)]
    body = []
    for name, by_size in timing.items():
        row = rows[name]
        times = []
        for size in TIMED_ROUNDS:
            found = sorted(1000 * seconds for seconds in by_size[str(size)])
            times.append(f"{statistics.median(found):.3g} [{found[0]:.3g}, {found[-1]:.3g}]")
        body.append([row.role, row.sampler, row.nfe, *times])
    return markdown_table(header, body, num_left=2)


def sweep_table(swept: Sequence[EvaluationRow]) -> list[str]:
    header = ["model", "sampler", "NFE", "temperature", "perplexity [95% CI]", "entropy [95% CI]", "distinct-4"]
    body = []
    for row in sorted(swept, key=lambda row: (row.role, row.sampler, row.nfe, row.temperature)):
        ppl, entropy = row.gen_ppl_ci, row.entropy_ci
        figures = [f"{row.gen_ppl:.0f} [{ppl[0]:.0f}, {ppl[1]:.0f}]"]
        figures += [f"{row.entropy:.3f} [{entropy[0]:.3f}, {entropy[1]:.3f}]", f"{row.distinct_4:.3f}"]
        body.append([row.role, row.sampler, row.nfe, f"{row.temperature:g}", *figures])
    return markdown_table(header, body, num_left=2)


def showcase(rows: dict[str, EvaluationRow], found: dict[str, dict[str, Any]]) -> list[str]:
    parts = []
    for name, row in rows.items():
        if row.temperature == 1:
            parts.append(f"**{row.label()}** (set: perplexity {row.gen_ppl:.0f}, entropy {row.entropy:.2f})\n")
            parts.append(f"> {' '.join(found[name]['texts'][0].split())}\n")
    return parts
