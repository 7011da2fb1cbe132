"""The tables and verdicts of docs/results/tiny-news.md; see ``tiny_news``."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from tiny_news_cells import (
    BASELINE,
    DATA,
    GUIDED_8,
    GUIDED_NFES,
    NFES,
    STUDENT_8,
    TEACHER_8,
    TEACHER_32,
    TEACHER_128,
    TIMED_ROUNDS,
    Cell,
    Timing,
)

from didi.evaluation.anchors import CORPUS_TEXTS
from didi.evaluation.frontier import frontier_ratio, perplexity_at_entropy
from didi.evaluation.row import EvaluationRow
from didi.markdown import markdown_table


def sweep(rows: dict[str, EvaluationRow], cell: Cell) -> list[tuple[float, float]]:
    """(entropy, perplexity) at each temperature of the cell's model and NFE."""
    kind = (cell.role, cell.sampler, cell.nfe)
    return [(row.entropy, row.gen_ppl) for row in rows.values() if (row.role, row.sampler, row.nfe) == kind]


def ratios_at_entropies(rows: dict[str, EvaluationRow], cell: Cell, base: Cell) -> list[float]:
    """Ratios of the perplexities of ``cell`` and ``base`` at the entropies of the sweep of ``cell``.

    The ratio at the entropy of exact samples (temperature 1) comes first, NaN if the sweep of ``base`` does not reach
    it; other entropies that it does not reach are left out.
    """
    exact = (rows[cell.name].entropy, rows[cell.name].gen_ppl)
    points = [exact, *(point for point in sweep(rows, cell) if point != exact)]
    ratios = [ppl / perplexity_at_entropy(sweep(rows, base), entropy) for entropy, ppl in points]
    return ratios[:1] + [ratio for ratio in ratios[1:] if math.isfinite(ratio)]


def verdicts(rows: dict[str, EvaluationRow]) -> list[str]:
    """The claims of this page as a table: figure, bound, and whether it holds."""
    data, teacher, student, guided = (rows[cell.name] for cell in (DATA, TEACHER_128, STUDENT_8, GUIDED_8))
    body = []

    def claim(text: str, figure: float, bound: float, *, is_upper: bool = True) -> None:
        holds = figure <= bound if is_upper else figure >= bound
        verdict = "yes" if holds else "**no**"
        if math.isnan(figure):
            verdict = "**not measured**: the ranges of entropy do not overlap"
        body.append([text, f"{figure:.4g}", f"{'≤' if is_upper else '≥'} {bound:g}", verdict])

    claim("teacher at 128 NFE: perplexity over that of held-out news", teacher.gen_ppl / data.gen_ppl, 4)
    claim("student at 8 NFE: perplexity over the teacher's at 128", student.gen_ppl / teacher.gen_ppl, 1)
    claim(
        "student at 8 NFE: entropy over the teacher's at 128", student.entropy / teacher.entropy, 0.97, is_upper=False
    )
    for base in (TEACHER_8, TEACHER_32, TEACHER_128):
        ratios = ratios_at_entropies(rows, STUDENT_8, base)
        mean, (low, high) = frontier_ratio(sweep(rows, STUDENT_8), sweep(rows, base))
        claim(
            f"student at 8 NFE over teacher at {base.nfe}, at the entropy of the student at temperature 1", ratios[0], 1
        )
        claim(
            f"the same, highest ratio of {len(ratios)} temperatures of the student",
            max(ratios, key=lambda x: (math.isnan(x), x)),
            1,
        )
        claim(f"the same, geometric mean over the entropies {low:.2f} to {high:.2f} that both reach", mean, 1)
        (ratio, *_) = ratios_at_entropies(rows, GUIDED_8, base)
        claim(
            f"guided student at 8 NFE over teacher at {base.nfe}, at the entropy of the former at temperature 1",
            ratio,
            1,
        )
    has_similar_entropy = abs(guided.entropy / student.entropy - 1) <= 0.02
    saved = 1 - guided.gen_ppl / student.gen_ppl if has_similar_entropy else math.nan
    claim("guidance at 8 NFE: relative decrease of perplexity, entropies within 2%", saved, 0.15, is_upper=False)
    saved = 1 - perplexity_at_entropy(sweep(rows, GUIDED_8), student.entropy) / student.gen_ppl
    claim("the same at the entropy of the student without guidance", saved, 0.15, is_upper=False)
    lines = markdown_table(["claim", "value", "bound", "holds"], body, align="lrrl")
    lines.append(
        f"\nGuidance at 8 NFE: {guided.discriminator_passes:.1f} discriminator passes per sequence; at temperature 1 "
        f"the entropy is {guided.entropy:.3f} with guidance and {student.entropy:.3f} without."
    )
    return lines


def against_autoregressive(rows: dict[str, EvaluationRow], timing: Timing) -> list[str]:
    """The fewest moves at which the student matches the autoregressive baseline at equal entropy, and the speed."""
    lines = []
    for sampler in ("ancestral", "guided"):
        title = f"**Student, {sampler}, compared with the autoregressive baseline:**"
        first_good, missed = None, []
        nfes = NFES if sampler == "ancestral" else GUIDED_NFES
        for nfe in nfes:
            row = rows[Cell("student", sampler, nfe).name]
            baseline_perplexity = perplexity_at_entropy(sweep(rows, BASELINE), row.entropy)
            if math.isnan(baseline_perplexity):
                continue  # the baseline does not reach this entropy
            if row.gen_ppl <= baseline_perplexity:
                first_good = (nfe, row, baseline_perplexity)
                break
            missed.append(f"{row.gen_ppl:.0f} and {baseline_perplexity:.0f} at {nfe} NFE")
        if first_good is None:
            measured = "" if len(missed) == len(nfes) else "measured "
            lines.append(
                f"{title} the student is worse at equal entropy at every {measured}NFE (perplexity of student and "
                f"baseline: {'; '.join(missed)})."
            )
            continue
        nfe, row, baseline_perplexity = first_good
        ratios = {
            size: sorted(
                of_baseline / of_student
                for of_student, of_baseline in zip(
                    timing[Cell("student", sampler, nfe).name][str(size)], timing[BASELINE.name][str(size)], strict=True
                )
            )
            for size in TIMED_ROUNDS
        }
        ratios = ", ".join(
            f"{statistics.median(values):.1f} [{values[0]:.1f}, {values[-1]:.1f}] at batch {size}"
            for size, values in ratios.items()
        )
        lines.append(
            f"{title} as good from {nfe} NFE on (perplexity {row.gen_ppl:.0f} against {baseline_perplexity:.0f} "
            f"at entropy {row.entropy:.2f}). Its tokens per second over the "
            f"baseline's, median and range of the rounds: {ratios}."
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
            values = sorted(1000 * seconds for seconds in by_size[str(size)])
            times.append(f"{statistics.median(values):.3g} [{values[0]:.3g}, {values[-1]:.3g}]")
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


def showcase(rows: dict[str, EvaluationRow], records: dict[str, dict[str, Any]]) -> list[str]:
    """The first text of each generated set at temperature 1."""
    parts = []
    for name, row in rows.items():
        if row.temperature == 1 and row.role not in CORPUS_TEXTS:
            parts.append(f"**{row.label()}** (set: perplexity {row.gen_ppl:.0f}, entropy {row.entropy:.2f})\n")
            parts.append(f"> {' '.join(records[name]['texts'][0].split())}\n")
    return parts
