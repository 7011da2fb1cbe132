"""Students against their teacher, in the report of ``didi reproduce --scale proteins``."""

from collections.abc import Sequence

from didi.apps.reproduce.protein_cells import RecordedJudge, SampleCell
from didi.apps.reproduce.protein_numbers import digits, number_with
from didi.apps.reproduce.protein_plan import STUDENT_NFES, TEACHER_NFE, ProteinPlan
from didi.apps.reproduce.protein_study import ProteinStudy
from didi.evaluation.protein.comparison import ENTROPY_TOLERANCE, SetComparison, compare_sets
from didi.markdown import markdown_table
from didi.sampling.options import SamplerName


def comparison_lines(plan: ProteinPlan, study: ProteinStudy, judge: RecordedJudge) -> list[str]:
    """Students at few moves against the teacher at many, and whether the claim holds."""
    student_nfes = [nfe for nfe in STUDENT_NFES if nfe in plan.nfes]
    if not student_nfes or TEACHER_NFE not in plan.nfes:
        few = " or ".join(map(str, STUDENT_NFES))
        return [f"This comparison needs --nfe with {few} for the students and {TEACHER_NFE} for the teacher."]
    has_several, body = len(plan.students) > 1, []
    for student_sampler in plan.samplers:
        for teacher_sampler in plan.teacher_samplers:
            for nfe in student_nfes:
                for lengths in (plan.lengths, *((length,) for length in plan.lengths if len(plan.lengths) > 1)):
                    settings = (student_sampler, nfe), (teacher_sampler, TEACHER_NFE)
                    comparison = compare(plan, study, judge, *settings, lengths)
                    residues = str(lengths[0]) if len(lengths) == 1 else "all lengths"
                    names = [f"{nfe}, {student_sampler}", f"{TEACHER_NFE}, {teacher_sampler}", residues]
                    body.append([*names, *_compared_cells(comparison, judge.unit, has_several=has_several)])
    header = ["moves of the student", "moves of the teacher", "residues", f"difference, {judge.unit} [95% CI]"]
    header += ["over seeds [95% CI]"] if has_several else []
    header += ["entropy ratio [95% CI]", "difference of nearest identity [95% CI]", "ratio of pair distances [95% CI]"]
    better = "higher" if judge.is_higher_better else "lower"
    return [
        f"Claim: the student scores better than the teacher at {TEACHER_NFE} moves (score {better}, beyond the 95% "
        f"bootstrap interval over sequences), with a residue entropy within {ENTROPY_TOLERANCE:.0%} of the teacher's, "
        "is no nearer to training proteins, and its samples are no nearer to each other (diversity), both beyond the "
        "interval. *failed* names the parts that do not hold. Differences are student minus teacher, ratios student "
        "over teacher; the sequences of each set are resampled separately. The interval over sequences holds for these "
        "bundles; only an interval over seeds speaks for the method.\n",
        *markdown_table([*header, "claim"], body, align="lll" + "r" * (len(header) - 3) + "l"),
    ]


def compare(
    plan: ProteinPlan,
    study: ProteinStudy,
    judge: RecordedJudge,
    student: tuple[SamplerName, int],
    teacher: tuple[SamplerName, int],
    lengths: Sequence[int],
) -> SetComparison:
    """Compare all students with the teacher; see ``evaluation.protein.comparison.compare_sets``.

    Args:
        plan: names the bundles.
        study: the study that holds their samples.
        judge: judge of the study.
        student: sampler and number of moves of the students.
        teacher: sampler and number of moves of the teacher.
        lengths: numbers of residues of the sets that are compared.
    """
    (sampler, nfe), (teacher_sampler, teacher_nfe) = student, teacher
    cells: list[list[SampleCell]] = [plan.student_cells(sampler, length, nfe) for length in lengths]
    of_students = [[study.scored(cell) for cell in of_seed] for of_seed in zip(*cells, strict=True)]
    of_teacher = [study.scored(plan.teacher_cell(teacher_sampler, length, teacher_nfe)) for length in lengths]
    return compare_sets(of_students, of_teacher, is_higher_better=judge.is_higher_better)


def _compared_cells(comparison: SetComparison, unit: str, *, has_several: bool) -> list[str]:
    spec = f"+.{digits(unit)}f"
    return [
        number_with(comparison.difference, comparison.difference_ci, spec),
        *([f"[{comparison.seeds_ci[0]:{spec}}, {comparison.seeds_ci[1]:{spec}}]"] if has_several else []),
        number_with(comparison.entropy_ratio, comparison.entropy_ratio_ci, ".3f"),
        number_with(comparison.identity_difference, comparison.identity_difference_ci, "+.3f"),
        number_with(comparison.distance_ratio, comparison.distance_ratio_ci, ".3f"),
        claim(comparison),
    ]


def claim(comparison: SetComparison) -> str:
    """``holds``, or ``*failed*`` and the parts of the claim that do not hold."""
    parts = {
        "score": comparison.has_better_score,
        "entropy": comparison.keeps_entropy,
        "novelty": comparison.is_as_novel,
        "diversity": comparison.is_as_diverse,
    }
    failed = [name for name, holds in parts.items() if holds is False]
    unknown = "; novelty not measured" if comparison.is_as_novel is None else ""
    return f"*failed*: {', '.join(failed)}{unknown}" if failed else f"holds{unknown}"
