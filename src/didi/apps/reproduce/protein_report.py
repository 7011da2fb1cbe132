"""Report of ``didi reproduce --scale proteins``: controls, tables of all sets, students against the teacher."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from didi.apps.reproduce.protein_cells import RecordedJudge
from didi.apps.reproduce.protein_claims import comparison_lines
from didi.apps.reproduce.protein_figures import Line, score_figure
from didi.apps.reproduce.protein_numbers import digits, number_with
from didi.apps.reproduce.protein_plan import ProteinPlan
from didi.apps.reproduce.protein_study import ProteinStudy
from didi.data import mmseqs
from didi.evaluation.frontier import Interval
from didi.evaluation.machine import machine_name
from didi.evaluation.over_seeds import estimate
from didi.evaluation.protein.controls import CONTROLS, NATURAL, SHUFFLED
from didi.evaluation.protein.judges import Comparison, check_judge
from didi.evaluation.protein.row import ProteinRow
from didi.markdown import markdown_table


@dataclass(frozen=True)
class CheckedControls:
    """A judge that orders the controls.

    Attributes:
        judge: the judge, with its recorded scores of the controls.
        comparisons: differences of its scores of pairs of controls.
        num_proteins: held-out proteins in each control set.
    """

    judge: RecordedJudge
    comparisons: list[Comparison]
    num_proteins: int


def checked_controls(plan: ProteinPlan, study: ProteinStudy) -> CheckedControls:
    """Check that the judge orders the controls of all lengths together.

    A held-out protein that is in the sets of two lengths counts once.

    Raises:
        DidiError: the judge does not order them.
    """
    records = {(cell.control, cell.length): study.record(cell) for cell in plan.controls}
    judge = RecordedJudge.of(list(records.values()))
    sets: dict[str, list[str]] = {name: [] for name in CONTROLS}
    for length in plan.lengths:
        natural = records[NATURAL, length]["sequences"]
        new = [number for number, residues in enumerate(natural) if residues not in sets[NATURAL]]
        for name in CONTROLS:
            sets[name] += [records[name, length]["sequences"][number] for number in new]
    return CheckedControls(judge, check_judge(judge, sets), len(sets[NATURAL]))


def heading(plan: ProteinPlan, study: ProteinStudy, controls: CheckedControls) -> list[str]:
    """First lines of the report: networks, settings, judge, order of the controls."""
    sampling, judge = study.sampling, controls.judge
    teacher, *students = plan.provenances
    described = [
        f"Student {number}: `{name}`, seed {provenance.get('seed', 'unknown')}"
        for number, (name, provenance) in enumerate(zip(plan.students, students, strict=True), start=1)
    ]
    body = [
        [f"{pair.better} over {pair.worse}", number_with(pair.difference, pair.interval, f"+.{digits(judge.unit)}f")]
        for pair in controls.comparisons
    ]
    better = "higher" if judge.is_higher_better else "lower"
    return [
        f"Teacher: `{plan.teacher}` (corpus {teacher.get('corpus', 'not recorded')}). {'. '.join(described)}.\n",
        f"{sampling.num_samples} samples of each network, sampler, length and number of moves, seed {sampling.seed}, "
        f"networks in {sampling.network}, draws in float64, uniform time grid; {machine_name()}. "
        f"Judge: `{judge.name}`, {judge.unit}, {better} is better. Intervals of one bundle are "
        "95% bootstrap intervals over sequences; intervals over several students are 95% t-intervals over "
        "training seeds. A high score does not show that a protein folds or works.\n",
        f"The judge prefers the controls in the expected order; {controls.num_proteins} held-out proteins in each "
        "set:\n",
        *markdown_table([f"control, advantage in {judge.unit}", "difference [95% CI]"], body),
        *_without_mmseqs(),
    ]


def _without_mmseqs() -> list[str]:
    if mmseqs.is_available():
        return []
    return [
        f"\nDiversity and identity with training proteins need the program {mmseqs.PROGRAM}, which is not on PATH. A "
        "set that was measured before has them; install it and give the same command again for the others."
    ]


def figure_5(plan: ProteinPlan, study: ProteinStudy) -> list[str]:
    """Draw Figure 5; returns lines with the figure and a table for each length."""
    judge = RecordedJudge.of([study.record(plan.controls[0])])
    lines = {length: _curves(plan, study, length) for length in plan.lengths}
    levels: dict[int, dict[str, float]] = {length: {} for length in plan.lengths}
    for cell in plan.controls:
        if cell.control in (NATURAL, SHUFFLED):
            levels[cell.length][cell.control] = study.row(cell).score
    figure = score_figure(lines, levels, study.folder / "figure5.png", unit=judge.unit)
    shown = (
        "Bars: 95% bootstrap intervals over the sequences of one bundle"
        if len(plan.students) == 1
        else "Students: means over training seeds with 95% t-intervals over seeds, cut at the edge of the panel where "
        "they are wider; teacher: 95% bootstrap intervals over sequences"
    )
    parts = [
        f"![Score against the number of moves]({figure.name})\n",
        f"{shown}. Natural: held-out proteins of nearly the same length; shuffled: their residues in a random order.",
    ]
    for length in plan.lengths:
        parts += [f"\n### {length} residues\n", *_table(plan, study, length, judge)]
    return parts


def claim(plan: ProteinPlan, study: ProteinStudy) -> list[str]:
    """The last section of a report with Figure 5: students against the teacher."""
    judge = RecordedJudge.of([study.record(plan.controls[0])])
    return ["\n## Claim: students against the teacher\n", *comparison_lines(plan, study, judge)]


def _curves(plan: ProteinPlan, study: ProteinStudy, length: int) -> list[Line]:
    """The lines of one panel."""
    lines = []
    for sampler in plan.teacher_samplers:
        rows = [study.row(plan.teacher_cell(sampler, length, nfe)) for nfe in plan.nfes]
        lines.append(
            Line("teacher", sampler, list(plan.nfes), [row.score for row in rows], [row.score_ci for row in rows])
        )
    for sampler in plan.samplers:
        by_nfe = [[study.row(cell) for cell in plan.student_cells(sampler, length, nfe)] for nfe in plan.nfes]
        means = [statistics.fmean(row.score for row in rows) for rows in by_nfe]
        lines.append(Line("student", sampler, list(plan.nfes), means, [_score_interval(rows) for rows in by_nfe]))
    return lines


def _score_interval(rows: Sequence[ProteinRow]) -> Interval:
    """Over training seeds, or over the sequences of a single bundle."""
    if len(rows) == 1:
        return rows[0].score_ci
    over_seeds = estimate([row.score for row in rows])
    return over_seeds.low, over_seeds.high


def _table(plan: ProteinPlan, study: ProteinStudy, length: int, judge: RecordedJudge) -> list[str]:
    """All sets of one length."""
    is_guided = "guided" in plan.samplers
    body: list[list[str]] = []

    def add(rows: Sequence[ProteinRow]) -> None:
        body.extend(_cells(row, judge.unit, is_guided=is_guided) for row in rows)

    add([study.row(cell) for cell in plan.controls if cell.length == length])
    for sampler in plan.teacher_samplers:
        add([study.row(plan.teacher_cell(sampler, length, nfe)) for nfe in plan.nfes])
    for sampler in plan.samplers:
        for nfe in plan.nfes:
            rows = [study.row(cell) for cell in plan.student_cells(sampler, length, nfe)]
            add([replace(row, name=f"student {number}") for number, row in enumerate(rows, start=1)])
            body += [_mean_cells(rows, judge.unit, is_guided=is_guided)] if len(rows) > 1 else []
    header = ["set", "sampler", "moves", "network passes", *(["discriminator passes"] if is_guided else []), "residues"]
    header += [f"score, {judge.unit} [95% CI]", "residue entropy [95% CI]", "corpus entropy", "duplicates", "diversity"]
    header += ["pair distance [95% CI]", "nearest training identity [95% CI]"]
    return markdown_table(header, body, num_left=2)


def _settings_cells(rows: Sequence[ProteinRow], name: str, *, is_guided: bool) -> list[str]:
    """The first columns of rows of one setting: name, sampler, moves, mean passes, residues."""
    row = rows[0]
    passes = [
        [row.network_passes for row in rows],
        *([[row.discriminator_passes for row in rows]] if is_guided else []),
    ]
    return [
        name,
        row.sampler or "–",
        str(row.nfe or "–"),
        *(number_with(statistics.fmean(of_rows), None, ".1f") for of_rows in passes),
        str(row.shortest) if row.shortest == row.longest else f"{row.shortest}–{row.longest}",
    ]


def _cells(row: ProteinRow, unit: str, *, is_guided: bool) -> list[str]:
    """A row of the table of one length."""
    return [
        *_settings_cells([row], row.name, is_guided=is_guided),
        number_with(row.score, row.score_ci, f".{digits(unit)}f"),
        number_with(row.residue_entropy, row.residue_entropy_ci, ".2f"),
        f"{row.corpus_entropy:.2f}",
        f"{row.duplicates:.2f}",
        number_with(row.diversity, None, ".2f"),
        number_with(row.pair_distance, row.pair_distance_ci, ".2f"),
        number_with(row.nearest_identity, row.nearest_identity_ci, ".2f"),
    ]


def _mean_cells(rows: Sequence[ProteinRow], unit: str, *, is_guided: bool) -> list[str]:
    """The mean of the rows of all students, with t-intervals."""

    def over_seeds(value: Callable[[ProteinRow], float], spec: str, *, has_interval: bool = True) -> str:
        values = [value(row) for row in rows]
        if any(map(math.isnan, values)):
            return "–"
        estimated = estimate(values)
        return number_with(estimated.mean, (estimated.low, estimated.high) if has_interval else None, spec)

    return [
        *_settings_cells(rows, f"students, mean of {len(rows)}", is_guided=is_guided),
        over_seeds(lambda row: row.score, f".{digits(unit)}f"),
        over_seeds(lambda row: row.residue_entropy, ".2f"),
        over_seeds(lambda row: row.corpus_entropy, ".2f", has_interval=False),
        over_seeds(lambda row: row.duplicates, ".2f", has_interval=False),
        over_seeds(lambda row: row.diversity, ".2f", has_interval=False),
        over_seeds(lambda row: row.pair_distance, ".2f"),
        over_seeds(lambda row: row.nearest_identity, ".2f"),
    ]
