"""A study: runs that are made once whatever asks for them, cells measured once, both resumable and in parallel.

A run is made only for cells that are still to be measured, and they are measured as soon as it is there: what a study
has found outlives its networks.
"""

import contextlib
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from didi.apps.reproduce.cells import AnyCell, Cell, JointCell, LikelihoodCell, Run
from didi.apps.reproduce.cost import recorded
from didi.apps.reproduce.workers import run_items
from didi.apps.train import distill_run, pretrain_run
from didi.data.source import source_for
from didi.errors import DidiError, UsageError
from didi.evaluation.anchors import anchor_sets
from didi.evaluation.divergences import joint_of_sampler
from didi.evaluation.evaluate import evaluate
from didi.evaluation.joint import JointEstimate
from didi.evaluation.row import EvaluationRow, SampleSet
from didi.evaluation.zero_shot import LikelihoodRow, score_corpus
from didi.files import json_text, write_atomically
from didi.methods.elbo import PretrainConfig
from didi.models.bundle import Bundle, Role, digest, load
from didi.models.discriminator import num_parameters
from didi.process_group import default_device
from didi.sampling.guided import Guidance
from didi.sampling.options import SamplingOptions
from didi.training.loop import RunFolder

NUM_TEXTS = 1  # kept of each cell


@dataclass(frozen=True)
class Sampling:
    """How every cell of a study is sampled and judged.

    Attributes:
        num_samples: in a cell.
        judge: name of the judge.
        seed: of the samples; no choice of settings was made on it.
        batch_size: sequences at a time.
        guidance: of guided cells.
        likelihood_sequences: of each corpus that a network is scored on.
    """

    num_samples: int
    judge: str
    seed: int = 20_264
    batch_size: int = 256
    guidance: Guidance = field(default_factory=Guidance)
    likelihood_sequences: int = 256


@dataclass(frozen=True)
class Study:
    """Runs and cells in a folder.

    Attributes:
        folder: holds ``runs/``, ``cells/`` and what is made of them.
        sampling: of every cell.
        workers: processes, each of one thread; with a single one the work is done in this process.
        digests: of the bundles that are given, by name or folder, as they were when the study first met them.
    """

    folder: Path
    sampling: Sampling
    workers: int = 2
    digests: dict[str, str] = field(default_factory=dict, compare=False)

    def digest(self, name: str) -> str:
        """``models.bundle.digest`` of a bundle, which is computed once."""
        if name not in self.digests:
            self.digests[name] = digest(name)
        return self.digests[name]

    def check_unchanged(self, name: str) -> None:
        """Refuse a bundle that is not what its figures will be kept as.

        Raises:
            DidiError: it has changed since the study began.
        """
        if digest(name) != self.digest(name):
            raise DidiError(f"bundle {name} has changed since this study began: start it again")

    def bundle_path(self, bundle: Run | str) -> str:
        """Where a bundle is, or will be."""
        return str(self.folder / "runs" / bundle.name(self.digest) / "bundle") if isinstance(bundle, Run) else bundle

    def complete(self, cells: Sequence[AnyCell]) -> None:
        """Make all runs that the cells need and measure the cells; what is there already is left alone.

        Raises:
            UsageError: the folder holds a study of other samples.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_sampling()
        missing: dict[Run | str, list[AnyCell]] = {}
        for cell in dict.fromkeys(cells):
            if not self.has(cell):
                missing.setdefault(cell.bundle, []).append(cell)
        teachers = {bundle: bundle.teacher for bundle in missing if isinstance(bundle, Run) and bundle.teacher}
        unasked = [run for run in dict.fromkeys(teachers.values()) if run not in missing]  # no cell of them is missing
        first = sorted((bundle for bundle in missing if bundle not in teachers), key=_is_pretraining, reverse=True)
        references = {cell.reference for cells in missing.values() for cell in cells if isinstance(cell, JointCell)}
        self._all([run for run in references if isinstance(run, Run)])  # cells of several bundles read them
        self._all([*unasked, *(missing[bundle] for bundle in first)])
        self._all([missing[bundle] for bundle in teachers])

    def _check_sampling(self) -> None:
        asked, file = json.loads(json.dumps(asdict(self.sampling))), self.folder / "sampling.json"
        if file.is_file() and _with_defaults(json.loads(file.read_text())) != asked:
            raise UsageError(
                f"{self.folder} holds cells of other sampling settings (see {file.name}): choose another --out"
            )
        write_atomically(file, json.dumps(asked, indent=1) + "\n")

    def _all(self, items: Sequence[Run | Sequence[AnyCell]]) -> None:
        """Make each run, measure the cells of each bundle; in processes of their own where there are several."""
        if self.workers == 1:
            for number, item in enumerate(items, start=1):
                print(f"{number}/{len(items)}  {_do(item, self)}", file=sys.stderr, flush=True)
            return
        numbers = itertools.count(1)
        run_items(
            partial(_do, study=self),
            items,
            self.workers,
            lambda name: print(f"{next(numbers)}/{len(items)}  {name}", file=sys.stderr, flush=True),
        )

    def _file(self, cell: AnyCell) -> Path:
        return self.folder / "cells" / f"{cell.name(self.digest)}.json"

    def has(self, cell: AnyCell) -> bool:
        """Whether a cell is measured."""
        return self._file(cell).is_file()

    def write(self, cell: AnyCell, row: EvaluationRow | LikelihoodRow | JointEstimate, **about: Any) -> None:
        """Keep a cell."""
        record = {"row": row.record(), "sampling": asdict(self.sampling)} | about
        write_atomically(self._file(cell), json_text(record, indent=1) + "\n")

    def record(self, cell: AnyCell) -> dict[str, Any]:
        """What is kept of a cell: its row, how it was sampled, and what else was said of it."""
        found: dict[str, Any] = json.loads(self._file(cell).read_text())
        return found

    def cost_file(self, run: Run) -> Path:
        """What a run has cost, see ``cost.recorded``; it outlives the run."""
        return self.folder / "costs" / f"{run.name(self.digest)}.json"

    def row(self, cell: Cell) -> EvaluationRow:
        """The figures of a cell."""
        return EvaluationRow.from_record(self.record(cell)["row"])

    def likelihood(self, cell: LikelihoodCell) -> LikelihoodRow:
        """The likelihood of a cell."""
        return LikelihoodRow.from_record(self.record(cell)["row"])

    def joint_kl(self, cell: JointCell) -> float:
        """The joint divergence of a cell, in nats a sequence."""
        return float(self.record(cell)["row"]["kl"])


def _with_defaults(sampling: dict[str, Any]) -> dict[str, Any]:
    """A recorded sampling; settings of guidance that came later have their defaults, which is what was done before."""
    return sampling | {"guidance": asdict(Guidance()) | sampling["guidance"]}


def _is_pretraining(bundle: Run | str) -> bool:
    """Whether it takes longest, and so begins first."""
    return isinstance(bundle, Run) and isinstance(bundle.config, PretrainConfig)


def _do(item: Run | Sequence[AnyCell], study: Study) -> str:
    return make(item, study) if isinstance(item, Run) else measure(item, study)


def make(run: Run, study: Study) -> str:
    """Make a run, or go on with it, if it is not there; what it says goes to a log beside it."""
    name = run.name(study.digest)
    if Path(study.bundle_path(run)).is_dir():
        return name
    torch.set_num_threads(1)
    folder = RunFolder(study.folder / "runs" / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    device = default_device()
    with (
        (folder.path / "log.txt").open("a") as log,
        contextlib.redirect_stderr(log),
        contextlib.redirect_stdout(log),
        recorded(study.cost_file(run), folder),
    ):
        if isinstance(run.config, PretrainConfig):
            pretrain_run(run.config, folder, resume=folder.has_run, device=device)
        else:
            teacher = study.bundle_path(run.teacher) if run.teacher is not None else run.config.teacher
            if run.teacher is None and teacher:
                study.check_unchanged(teacher)
            distill_run(replace(run.config, teacher=teacher), folder, resume=folder.has_run, device=device)
    return name


def measure(cells: Sequence[AnyCell], study: Study) -> str:
    """Measure cells of one bundle, which is made first if it is a run."""
    torch.set_num_threads(1)
    origin = cells[0].bundle
    if isinstance(origin, Run):
        make(origin, study)
    else:
        study.check_unchanged(origin)
    bundle, sampling = load(study.bundle_path(origin)), study.sampling
    _measure_real(bundle, [cell for cell in cells if isinstance(cell, Cell) and not cell.nfe], study)
    sampled: dict[Cell, list[Cell]] = {}  # by what one evaluation shares
    for cell in cells:
        if isinstance(cell, LikelihoodCell):
            count, seed = sampling.likelihood_sequences, sampling.seed
            study.write(cell, score_corpus(bundle, cell.corpus, cell.role, num_sequences=count, seed=seed))
        elif isinstance(cell, JointCell):
            options = SamplingOptions(role=cell.role, sampler=cell.sampler, batch_size=sampling.batch_size)
            reference, count = load(study.bundle_path(cell.reference)), cell.num_samples
            study.write(cell, joint_of_sampler(bundle, reference, cell.nfe, count, sampling.seed, options))
        elif cell.nfe:
            sampled.setdefault(replace(cell, nfe=0), []).append(cell)
    for alike, group in sampled.items():
        _measure_samples(bundle, alike, group, study)
    return cells[0].name(study.digest)


def _measure_samples(bundle: Bundle, alike: Cell, cells: Sequence[Cell], study: Study) -> None:
    """Measure cells that differ in their number of moves only; rows come in the order of the cells.

    The row of a self-paced sampler has another number of moves than was asked for.
    """
    sampling, pending = study.sampling, iter(cells)
    guidance = sampling.guidance if alike.sampler == "guided" else None
    options = SamplingOptions(batch_size=sampling.batch_size, guidance=guidance, temperature=alike.temperature)
    evaluate(
        bundle,
        role=cast(Role, alike.role),
        sampler=alike.sampler,
        nfe=[cell.nfe for cell in cells],
        options=options,
        joint=alike.joint,
        on_set=lambda one: _write_set(next(pending), bundle, study, one),
        **_common(sampling),
    )


def _measure_real(bundle: Bundle, cells: Sequence[Cell], study: Study) -> None:
    """Measure held-out data and anchors in a bundle's own tokens."""
    if not cells:
        return
    source = source_for(bundle, corpus_of(bundle))
    anchors = anchor_sets(source, study.sampling.num_samples, seed=study.sampling.seed)
    kept: list[SampleSet] = []
    evaluate(bundle, nfe=(), data=source.test, anchors=anchors, on_set=kept.append, **_common(study.sampling))
    by_role = {cell.role: cell for cell in cells}
    for one in kept:
        if one.row.role in by_role:
            _write_set(by_role[one.row.role], bundle, study, one)


def corpus_of(bundle: Bundle) -> str:
    """The corpus that a bundle was trained on.

    Raises:
        UsageError: the bundle does not record it, as a converted checkpoint.
    """
    corpus = bundle.provenance.get("corpus")
    if not isinstance(corpus, str):
        raise UsageError(
            f"held-out data is of the corpus that a model was trained on, and {bundle.name} does not record it: add "
            "corpus: NAME under provenance in its bundle.yaml"
        )
    return corpus


def _common(sampling: Sampling) -> dict[str, Any]:
    return {"num_samples": sampling.num_samples, "judge": sampling.judge, "seed": sampling.seed}


def _write_set(cell: Cell, bundle: Bundle, study: Study, measured: SampleSet) -> None:
    texts, size = measured.texts[:NUM_TEXTS], num_parameters(bundle.network())
    about = {"texts": texts, "num_parameters": size, "intended_nfe": bundle.intended_nfe}
    study.write(cell, measured.row, workers=study.workers, **about)
