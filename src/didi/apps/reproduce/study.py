"""A study: runs and cells that are computed once, in parallel, and can be resumed.

A run is trained only if cells of it are missing, and its cells are measured as soon as it is finished. Results of cells
are kept when the networks of a study are deleted.
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

from didi.apps.reproduce.cells import AnyCell, BundleDigests, Cell, JointCell, LikelihoodCell, Run
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

NUM_TEXTS = 1  # sample texts that are kept with each cell


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling and judging that all cells of a study share.

    Attributes:
        num_samples: number of samples of a cell.
        judge: name of the judge.
        seed: random seed of the samples; no settings were chosen with this seed.
        batch_size: number of sequences of a batch.
        guidance: settings of guided cells.
        likelihood_sequences: number of scored sequences of a likelihood cell.
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
        folder: folder of ``runs/``, ``cells/``, ``costs/`` and the report.
        sampling: settings of all cells.
        workers: number of processes, of one thread each; with 1, the work is done in this process.
        digests: digests of existing bundles by name or folder, each computed when it is first needed.
    """

    folder: Path
    sampling: Sampling
    workers: int = 2
    digests: BundleDigests = field(default_factory=BundleDigests, compare=False)

    def digest(self, name: str) -> str:
        """``models.bundle.digest`` of a bundle, computed once."""
        return self.digests[name]

    def check_unchanged(self, name: str) -> None:
        """Refuse a bundle whose content no longer has the digest in the names of its cells.

        Raises:
            DidiError: the bundle has changed since the study began.
        """
        if digest(name) != self.digest(name):
            raise DidiError(f"bundle {name} has changed since this study began: start it again")

    def bundle_path(self, bundle: Run | str) -> str:
        """Path of an existing bundle, or of the bundle that a run writes."""
        return str(self.folder / "runs" / bundle.name(self.digest) / "bundle") if isinstance(bundle, Run) else bundle

    def complete(self, cells: Sequence[AnyCell]) -> None:
        """Train all runs that missing cells need, and measure the missing cells.

        Raises:
            UsageError: the folder has a study with other sampling settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_sampling()
        missing: dict[Run | str, list[AnyCell]] = {}
        for cell in dict.fromkeys(cells):
            if not self.has(cell):
                missing.setdefault(cell.bundle, []).append(cell)
        teachers = {bundle: bundle.teacher for bundle in missing if isinstance(bundle, Run) and bundle.teacher}
        # Three stages: references, which cells of several bundles need; teachers and all else; students of these runs.
        teachers_only = [run for run in dict.fromkeys(teachers.values()) if run not in missing]
        second = sorted((bundle for bundle in missing if bundle not in teachers), key=_is_pretraining, reverse=True)
        references = {cell.reference for cells in missing.values() for cell in cells if isinstance(cell, JointCell)}
        self._complete_all([run for run in references if isinstance(run, Run)])
        self._complete_all([*teachers_only, *(missing[bundle] for bundle in second)])
        self._complete_all([missing[bundle] for bundle in teachers])

    def _check_sampling(self) -> None:
        settings, file = json.loads(json.dumps(asdict(self.sampling))), self.folder / "sampling.json"
        if file.is_file() and _with_defaults(json.loads(file.read_text("utf-8"))) != settings:
            raise UsageError(
                f"{self.folder} holds cells of other sampling settings (see {file.name}): choose another --out"
            )
        write_atomically(file, json.dumps(settings, indent=1) + "\n")

    def _complete_all(self, items: Sequence[Run | Sequence[AnyCell]]) -> None:
        """Train each run and measure the cells of each bundle, in worker processes if there are several."""
        if self.workers == 1:
            for number, item in enumerate(items, start=1):
                print(f"{number}/{len(items)}  {_complete(item, self)}", file=sys.stderr, flush=True)
            return
        numbers = itertools.count(1)
        run_items(
            partial(_complete, study=self),
            items,
            self.workers,
            lambda name: print(f"{next(numbers)}/{len(items)}  {name}", file=sys.stderr, flush=True),
        )

    def _file(self, cell: AnyCell) -> Path:
        return self.folder / "cells" / f"{cell.name(self.digest)}.json"

    def has(self, cell: AnyCell) -> bool:
        """Whether a cell is measured."""
        return self._file(cell).is_file()

    def write(self, cell: AnyCell, row: EvaluationRow | LikelihoodRow | JointEstimate, **fields: Any) -> None:
        """Write the result of a cell, with further ``fields``."""
        record = {"row": row.record(), "sampling": asdict(self.sampling)} | fields
        write_atomically(self._file(cell), json_text(record, indent=1) + "\n")

    def record(self, cell: AnyCell) -> dict[str, Any]:
        """The record of a cell: its row, the sampling settings, and the further fields of ``write``."""
        record: dict[str, Any] = json.loads(self._file(cell).read_text("utf-8"))
        return record

    def cost_file(self, run: Run) -> Path:
        """File with the cost of a run, see ``cost.recorded``; it is kept when the run is deleted."""
        return self.folder / "costs" / f"{run.name(self.digest)}.json"

    def row(self, cell: Cell) -> EvaluationRow:
        """The evaluation row of a cell."""
        return EvaluationRow.from_record(self.record(cell)["row"])

    def likelihood(self, cell: LikelihoodCell) -> LikelihoodRow:
        """The likelihood row of a cell."""
        return LikelihoodRow.from_record(self.record(cell)["row"])

    def joint_kl(self, cell: JointCell) -> float:
        """The joint divergence of a cell, in nats a sequence."""
        return float(self.record(cell)["row"]["kl"])


def _with_defaults(sampling: dict[str, Any]) -> dict[str, Any]:
    """Recorded sampling settings, with defaults for settings of guidance that older versions did not have."""
    return sampling | {"guidance": asdict(Guidance()) | sampling["guidance"]}


def _is_pretraining(bundle: Run | str) -> bool:
    """Whether a bundle is pre-trained; pre-training takes longest and is started first."""
    return isinstance(bundle, Run) and isinstance(bundle.config, PretrainConfig)


def _complete(item: Run | Sequence[AnyCell], study: Study) -> str:
    return train_run(item, study) if isinstance(item, Run) else measure(item, study)


def train_run(run: Run, study: Study) -> str:
    """Train or resume a run unless its bundle exists; returns its name. Its output is written to its ``log.txt``."""
    name = run.name(study.digest)
    if Path(study.bundle_path(run)).is_dir():
        return name
    torch.set_num_threads(1)
    folder = RunFolder(study.folder / "runs" / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    device = default_device()
    with (
        (folder.path / "log.txt").open("a", encoding="utf-8") as log,
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
    """Measure cells of one bundle, which is trained first if it is a run; returns the name of the first cell."""
    torch.set_num_threads(1)
    origin = cells[0].bundle
    if isinstance(origin, Run):
        train_run(origin, study)
    else:
        study.check_unchanged(origin)
    bundle, sampling = load(study.bundle_path(origin)), study.sampling
    _measure_real(bundle, [cell for cell in cells if isinstance(cell, Cell) and not cell.nfe], study)
    sampled: dict[Cell, list[Cell]] = {}  # cells that differ in nfe only and share an evaluation
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
    for shared, group in sampled.items():
        _measure_samples(bundle, shared, group, study)
    return cells[0].name(study.digest)


def _measure_samples(bundle: Bundle, shared: Cell, cells: Sequence[Cell], study: Study) -> None:
    """Measure cells that differ only in their number of moves from each other and from ``shared``.

    Rows are matched to cells by their order, since a sampler that ignores the grid has rows with another ``nfe``.
    """
    sampling, pending = study.sampling, iter(cells)
    guidance = sampling.guidance if shared.sampler == "guided" else None
    options = SamplingOptions(batch_size=sampling.batch_size, guidance=guidance, temperature=shared.temperature)
    evaluate(
        bundle,
        role=cast(Role, shared.role),
        sampler=shared.sampler,
        nfe=[cell.nfe for cell in cells],
        options=options,
        joint=shared.joint,
        on_set=lambda measured: _write_set(next(pending), bundle, study, measured),
        **_common(sampling),
    )


def _measure_real(bundle: Bundle, cells: Sequence[Cell], study: Study) -> None:
    """Measure held-out data and anchors of a bundle's corpus."""
    if not cells:
        return
    source = source_for(bundle, corpus_of(bundle))
    anchors = anchor_sets(source, study.sampling.num_samples, seed=study.sampling.seed)
    sets: list[SampleSet] = []
    evaluate(bundle, nfe=(), data=source.test, anchors=anchors, on_set=sets.append, **_common(study.sampling))
    by_role = {cell.role: cell for cell in cells}
    for measured in sets:
        if measured.row.role in by_role:
            _write_set(by_role[measured.row.role], bundle, study, measured)


def corpus_of(bundle: Bundle) -> str:
    """The corpus that a bundle was trained on.

    Raises:
        UsageError: the bundle does not record its corpus, as with a converted checkpoint.
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
    network = bundle.networks().get(cell.role, bundle.network())  # of data and anchors: the default network
    texts, size = measured.texts[:NUM_TEXTS], num_parameters(network)
    fields = {"texts": texts, "num_parameters": size, "intended_nfe": bundle.intended_nfe}
    study.write(cell, measured.row, workers=study.workers, **fields)
