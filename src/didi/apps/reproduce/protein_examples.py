"""Figures 6 and 7: the lowest-scored samples of the teacher and the highest-scored samples of the students."""

from collections.abc import Sequence
from dataclasses import dataclass

from didi.apps.reproduce.protein_cells import ExampleCell, RecordedJudge, SampleCell
from didi.apps.reproduce.protein_figures import Example, examples_figure
from didi.apps.reproduce.protein_measure import complete
from didi.apps.reproduce.protein_numbers import digits
from didi.apps.reproduce.protein_plan import ProteinPlan
from didi.apps.reproduce.protein_study import ProteinStudy
from didi.data.fasta import fasta_record


@dataclass(frozen=True)
class Chosen:
    """A sample that a figure shows.

    Attributes:
        cell: the set that holds the sample.
        number: number of the sample in the set, from 0.
        residues: its residues, one letter each.
        score: its score by the judge of the study.
        num_candidates: number of samples among which it was chosen.
    """

    cell: SampleCell
    number: int
    residues: str
    score: float
    num_candidates: int


def figure_6(plan: ProteinPlan, study: ProteinStudy) -> list[str]:
    """Draw the samples of the teacher with the lowest scores; returns the lines of the report."""
    return _lines(plan, study, plan.teacher_examples, "figure6", is_best=False)


def figure_7(plan: ProteinPlan, study: ProteinStudy) -> list[str]:
    """Draw the samples of the students with the highest scores; returns the lines of the report."""
    return _lines(plan, study, plan.student_examples, "figure7", is_best=True)


def chosen_samples(study: ProteinStudy, cells: Sequence[SampleCell], *, is_best: bool) -> list[Chosen]:
    """The best or worst sample by score for each length and number of moves; of equal scores, the first.

    Args:
        study: the study that holds the cells.
        cells: sets of samples of one network, or of several students.
        is_best: whether the best sample is chosen, else the worst.
    """
    groups: dict[tuple[int, int], list[Chosen]] = {}
    for cell in cells:
        record = study.record(cell)
        sign = 1 if record["judge"]["is_higher_better"] == is_best else -1
        pairs = zip(record["sequences"], record["scores"], strict=True)
        groups.setdefault((cell.length, cell.nfe), []).extend(
            Chosen(cell, number, residues, sign * score, 0) for number, (residues, score) in enumerate(pairs)
        )
    chosen = []
    for candidates in groups.values():
        best = max(candidates, key=lambda candidate: candidate.score)
        score = study.record(best.cell)["scores"][best.number]
        chosen.append(Chosen(best.cell, best.number, best.residues, score, len(candidates)))
    return chosen


def _lines(
    plan: ProteinPlan, study: ProteinStudy, cells: Sequence[SampleCell], name: str, *, is_best: bool
) -> list[str]:
    """The figure, how its samples were chosen, and their sequences."""
    chosen = chosen_samples(study, cells, is_best=is_best)
    judge = RecordedJudge.of([study.record(chosen[0].cell)])
    example = ExampleCell(tuple(sample.residues for sample in chosen))
    complete([example], study)
    record = study.record(example)
    scores = record["residue_scores"] or [None] * len(chosen)
    traces = record["traces"] or [None] * len(chosen)
    drawn = [
        Example(_title(plan, sample, judge, is_best=is_best), sample.residues, scores[number], traces[number])
        for number, sample in enumerate(chosen)
    ]
    unit = record["residue_unit"]
    figure = examples_figure(drawn, study.folder / f"{name}.png", unit=unit, is_higher_better=judge.is_higher_better)
    which = "highest" if is_best == judge.is_higher_better else "lowest"
    whose = "the students" if is_best else "the teacher"
    coloured = f"Colours are scores of residues, {unit}." if unit else "The judge has no scores of residues."
    shape = (
        " Traces are the alpha carbons of the predicted structure."
        if record["traces"]
        else " The judge predicts no structure."
    )
    records = [fasta_record(_fasta_title(plan, sample, judge), sample.residues) for sample in chosen]
    return [
        f"![Samples of {whose}]({figure.name})\n",
        f"Chosen, not random: for each length and number of moves, the sample of {whose} with the {which} score. "
        f"{coloured}{shape}\n",
        "```text",
        "".join(records) + "```",
    ]


def _source(plan: ProteinPlan, sample: Chosen) -> str:
    if sample.cell.role == "teacher":
        return "teacher"
    return f"student {plan.students.index(sample.cell.bundle) + 1}"


def _title(plan: ProteinPlan, sample: Chosen, judge: RecordedJudge, *, is_best: bool) -> str:
    which = "highest" if is_best == judge.is_higher_better else "lowest"
    return (
        f"{_source(plan, sample)}, {sample.cell.length} residues, {sample.cell.nfe} moves, {sample.cell.sampler}: "
        f"{sample.score:.{digits(judge.unit)}f} {judge.unit}, {which} of {sample.num_candidates}"
    )


def _fasta_title(plan: ProteinPlan, sample: Chosen, judge: RecordedJudge) -> str:
    source = _source(plan, sample).replace(" ", "-")
    return (
        f"{source}-{sample.cell.length}-{sample.cell.nfe} sampler={sample.cell.sampler} nfe={sample.cell.nfe} "
        f"sample={sample.number + 1} score={sample.score:.{digits(judge.unit)}f}"
    )
