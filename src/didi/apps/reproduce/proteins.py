"""``didi reproduce --scale proteins``: flags, checks and the order of the measurements of Figures 5, 6 and 7."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from didi.apps.reproduce import protein_examples, protein_report
from didi.apps.reproduce.protein_cells import SampleCell
from didi.apps.reproduce.protein_measure import complete
from didi.apps.reproduce.protein_neighbours import add_neighbours
from didi.apps.reproduce.protein_plan import DEFAULT_LENGTHS, DEFAULT_NFES, ProteinPlan
from didi.apps.reproduce.protein_study import ProteinSampling, ProteinStudy
from didi.apps.reproduce.targets import chosen_targets, resumable, write_pages
from didi.arguments import whole_number
from didi.data.protein import ProteinData, is_protein_tokenizer, prepare_proteins
from didi.data.protein_batches import FRAME
from didi.data.protein_source import SHORTEST
from didi.errors import UsageError
from didi.evaluation.protein.judges import check_judge_name
from didi.models.bundle import Bundle, Role, digest, load
from didi.models.inference import Numerics
from didi.sampling.options import SamplerName
from didi.sampling.registry import find_sampler, ignores_grid

PROTEINS = "proteins"
NUM_SAMPLES = 64


@dataclass(frozen=True)
class ProteinFlags:
    """Flags of --scale proteins."""

    students: tuple[str, ...] = ()
    """proteins: bundles of students of one method, one for each training seed."""
    judge: str | None = None
    """proteins: dssp-order (secondary structure), unirep-order (CC BY-NC 4.0), esmfold, igfold (antibodies,
    non-commercial), or the bundle folder of an autoregressive network of proteins."""
    lengths: tuple[int, ...] = ()
    """proteins: residues of the samples; 60 100 150 200 250 by default."""
    nfe: tuple[int, ...] = ()
    """proteins: numbers of moves; 8 16 32 64 128 256 512 by default."""
    num_samples: int | None = None
    """proteins: samples of each network, sampler, length and number of moves; 64 by default."""
    samplers: tuple[SamplerName, ...] = ()
    """proteins: ancestral by default; guided is left out for the teacher."""
    network: Numerics | None = None
    """proteins: number format of the networks' trunks; float32 by default. Draws are float64."""
    corpus: str | None = None
    """proteins: corpus of the controls and of the novelty; by default the corpus that the teacher was trained on."""

    def given(self) -> list[str]:
        """Names of the flags that are given."""
        return [field.name for field in fields(self) if getattr(self, field.name) not in ((), None)]


@dataclass(frozen=True)
class ProteinTarget:
    """A figure of proteins.

    Attributes:
        title: heading in the report.
        cells: function from a plan to the sets of samples that the figure needs.
        lines: function that draws the figure into the folder of the study and returns its lines in the report.
    """

    title: str
    cells: Callable[[ProteinPlan], Sequence[SampleCell]]
    lines: Callable[[ProteinPlan, ProteinStudy], list[str]]


PROTEIN_TARGETS: Mapping[str, ProteinTarget] = {
    "figure5": ProteinTarget("Figure 5: score against moves", lambda plan: plan.cells, protein_report.figure_5),
    "figure6": ProteinTarget(
        "Figure 6: samples of the teacher with the lowest confidence",
        lambda plan: plan.teacher_examples,
        protein_examples.figure_6,
    ),
    "figure7": ProteinTarget(
        "Figure 7: samples of the student with the highest confidence",
        lambda plan: plan.student_examples,
        protein_examples.figure_7,
    ),
}


def reproduce_proteins(names: Sequence[str], teacher: str | None, flags: ProteinFlags, out: Path, workers: int) -> None:
    """Measure controls, check the judge, measure the cells of the figures and write the report.

    Args:
        names: names of the figures, or ``all``.
        teacher: bundle of the teacher.
        flags: further flags.
        out: folder of the study.
        workers: number of processes.

    Raises:
        UsageError: a flag is missing or wrong, or ``out`` holds another study.
        DidiError: the judge does not order the controls, or the corpus cannot be read.
        Interrupted: the study was interrupted; completed cells are kept.
    """
    chosen = chosen_targets(PROTEIN_TARGETS, names, f"a target of --scale {PROTEINS}")
    plan, bundle, judge = protein_plan(teacher, flags)
    num_samples = NUM_SAMPLES if flags.num_samples is None else whole_number("--num-samples", flags.num_samples, low=2)
    study = ProteinStudy(out, ProteinSampling(num_samples, judge, flags.network or "float32"), workers)
    for name in (plan.teacher, *plan.students):
        study.digest(name)
    study.begin(_data(flags.corpus, bundle, plan.provenances[1:]))
    with resumable(out):
        complete(plan.controls, study)
        controls = protein_report.checked_controls(plan, study)
        cells = [cell for target in chosen.values() for cell in target.cells(plan)]
        complete(cells, study)
        add_neighbours([*plan.controls, *cells], study)
        parts = [f"# didi reproduce --scale {PROTEINS}\n", *protein_report.heading(plan, study, controls)]
        for name, target in chosen.items():
            print(f"writing {name}", file=sys.stderr, flush=True)
            parts += [f"\n## {target.title}\n", *target.lines(plan, study)]
        if "figure5" in chosen:
            parts += protein_report.claim(plan, study)
    write_pages(out, parts)


def protein_plan(teacher: str | None, flags: ProteinFlags) -> tuple[ProteinPlan, Bundle, str]:
    """The plan of a command, its teacher's bundle, and the name or folder of the judge.

    Raises:
        UsageError: a bundle is missing or is not of proteins, a length does not fit, students are not of one method, or
            a sampler has no number of moves.
    """
    needed = {"--teacher": teacher, "--students": flags.students, "--judge": flags.judge}
    missing = [name for name, value in needed.items() if not value]
    if missing or teacher is None or flags.judge is None:
        raise UsageError(f"reproduce --scale {PROTEINS} needs {' and '.join(missing)}")
    check_judge_name(flags.judge)
    samplers = tuple(dict.fromkeys(flags.samplers or ("ancestral",)))
    nfes = sorted({whole_number("--nfe", nfe, low=1) for nfe in flags.nfe or DEFAULT_NFES})
    lengths = sorted({whole_number("--lengths", length, low=1) for length in flags.lengths or DEFAULT_LENGTHS})
    bundle = _protein_bundle(teacher, "teacher", lengths, samplers)
    provenances = [_protein_bundle(name, "student", lengths, samplers).provenance for name in flags.students]
    _check_seeds(flags.students, provenances)
    plan = ProteinPlan(
        teacher, flags.students, tuple(lengths), tuple(nfes), samplers, (bundle.provenance, *provenances)
    )
    if not plan.teacher_samplers:
        raise UsageError(
            "--samplers has a sampler for the teacher, which has no discriminator for guided: add ancestral"
        )
    folder = Path(flags.judge).expanduser()
    return plan, bundle, str(folder) if folder.is_dir() else flags.judge


def _protein_bundle(name: str, role: Role, lengths: Sequence[int], samplers: Sequence[SamplerName]) -> Bundle:
    """A bundle whose network of a role can be sampled as asked.

    Raises:
        UsageError: it cannot.
    """
    bundle = load(name)
    if not is_protein_tokenizer(bundle.tokenizer):
        raise UsageError(f"--scale {PROTEINS} takes bundles of proteins; {name} is not one")
    network = bundle.denoiser(role)
    longest = network.length - FRAME
    if max(lengths) > longest:
        raise UsageError(
            f"--lengths are 1 to {longest} residues, which the {role} {name} has positions for; got {max(lengths)}: "
            "lower it"
        )
    for sampler in samplers:
        find_sampler(sampler, bundle.process.name)
        if ignores_grid(network, sampler) or find_sampler(sampler, bundle.process.name).num_moves is not None:
            raise UsageError(f"--samplers have a number of moves; {sampler} does not follow --nfe: leave it out")
        if sampler == "guided" and role == "student" and bundle.discriminator is None:
            raise UsageError(f"guided sampling needs a discriminator, which {name} does not hold: leave guided out")
    return bundle


def _check_seeds(students: Sequence[str], provenances: Sequence[Mapping[str, Any]]) -> None:
    """Refuse students that are not of different training seeds of one method.

    Raises:
        UsageError: they are not.
    """
    rule = "--students are bundles of different training seeds of one method"
    if len({digest(name) for name in students}) < len(students):
        raise UsageError(f"{rule}; got one bundle twice: leave it out")
    for field in ("method", "recipe"):
        if len(values := {str(provenance[field]) for provenance in provenances if field in provenance}) > 1:
            raise UsageError(f"{rule}; got the {field}s {', '.join(sorted(values))}: give those of one {field}")
    seeds = [provenance["seed"] for provenance in provenances if "seed" in provenance]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"{rule}; got seeds {', '.join(map(str, seeds))}: give one bundle for each seed")


def _trained_length(provenance: Mapping[str, Any]) -> int | None:
    """``data.length`` of the training of a bundle with this provenance; None if it is not recorded."""
    settings = provenance.get("settings")
    data = settings.get("data") if isinstance(settings, dict) else None
    length = data.get("length") if isinstance(data, dict) else None
    return length if isinstance(length, int) else None


def _data(corpus: str | None, teacher: Bundle, students: Sequence[Mapping[str, Any]]) -> ProteinData:
    """The splits of the corpus as in the training of teacher and students.

    Splits depend on the proteins that are clustered, and so on the corpus and its largest length.

    Args:
        corpus: name of the corpus; None for the recorded corpus of the teacher.
        teacher: bundle of the teacher; one that was converted records no length, then that of the students is taken.
        students: provenance of each student.

    Raises:
        UsageError: no corpus is recorded or given, or teacher and students were trained on different splits.
        DidiError: the corpus cannot be read.
    """
    name = corpus or teacher.provenance.get("corpus")
    if not isinstance(name, str):
        raise UsageError(f"the bundle {teacher.name} does not record the corpus of its training: give --corpus")
    corpora = {str(provenance["corpus"]) for provenance in students if "corpus" in provenance}
    if corpus is None and (others := sorted(corpora - {name})):
        raise UsageError(
            f"teacher and students have the proteins of one corpus; the teacher has {name}, a student {others[0]}: "
            "give students of that corpus, or --corpus"
        )
    lengths = {
        length for provenance in (teacher.provenance, *students) if (length := _trained_length(provenance)) is not None
    }
    if len(lengths) > 1:
        raise UsageError(
            f"teacher and students were trained with one data.length; got {', '.join(map(str, sorted(lengths)))}: give "
            "bundles of one length"
        )
    longest = next(iter(lengths), teacher.denoiser("teacher").length)
    return prepare_proteins(name, min_length=SHORTEST, max_length=longest - FRAME)
