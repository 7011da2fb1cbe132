"""A study: runs that are made once whatever asks for them, cells measured once, both resumable and in parallel."""

import contextlib
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from didi.apps.train import distill_run, pretrain_run
from didi.data.source import open_source
from didi.evaluation.anchors import anchor_sets
from didi.evaluation.evaluate import evaluate
from didi.evaluation.report import write_text
from didi.evaluation.row import EvaluationRow, SampleSet
from didi.models.hub import load
from didi.sampling.generate import SamplerName, SamplingOptions
from didi.sampling.guided import Guidance
from didi.training.config import DistillConfig, PretrainConfig
from didi.training.loop import RunFolder

NUM_TEXTS = 1  # kept of each cell


@dataclass(frozen=True)
class Run:
    """A network to make; runs of equal settings are one.

    Attributes:
        config: its settings; the teacher of a distillation is a bundle's name or folder.
        needs: runs that have to be made before, such as its teacher.
    """

    config: PretrainConfig | DistillConfig
    needs: tuple["Run", ...] = ()

    @property
    def name(self) -> str:
        """Folder of the run: recipe, seed and a digest of all settings."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.config.recipe}-seed{self.config.seed}-{digest}"


@dataclass(frozen=True)
class Cell:
    """One sample set of a bundle.

    Attributes:
        bundle: a run, or the name or folder of a bundle that is there.
        role: which network; or ``data``, or the name of an anchor, in the bundle's own corpus and tokens.
        sampler: how it is sampled.
        nfe: number of moves; 0 for what is not sampled.
    """

    bundle: Run | str
    role: str
    sampler: SamplerName = "ancestral"
    nfe: int = 8

    @property
    def name(self) -> str:
        """File of the cell."""
        origin = self.bundle.name if isinstance(self.bundle, Run) else Path(self.bundle).name
        return f"{origin}-{self.role}-{self.sampler}-{self.nfe}"


@dataclass(frozen=True)
class Sampling:
    """How every cell of a study is sampled and judged.

    Attributes:
        num_samples: in a cell.
        judge: name of the judge.
        seed: of the samples; no choice of settings was made on it.
        batch_size: sequences at a time.
        guidance: of guided cells.
    """

    num_samples: int
    judge: str
    seed: int = 20_264
    batch_size: int = 256
    guidance: Guidance = field(default_factory=Guidance)


@dataclass(frozen=True)
class Study:
    """Runs and cells in a folder.

    Attributes:
        folder: holds ``runs/``, ``cells/`` and what is made of them.
        sampling: of every cell.
        workers: processes; each computes with one thread.
    """

    folder: Path
    sampling: Sampling
    workers: int = 2

    def bundle_path(self, bundle: Run | str) -> str:
        """Where a bundle is, or will be."""
        return str(self.folder / "runs" / bundle.name / "bundle") if isinstance(bundle, Run) else bundle

    def complete(self, cells: Sequence[Cell]) -> None:
        """Make all runs that the cells need and measure the cells; what is there already is left alone.

        Raises:
            UsageError: the folder holds a study of other samples.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        runs = [cell.bundle for cell in cells if isinstance(cell.bundle, Run)]
        first = [needed for run in runs for needed in run.needs]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=context) as pool:
            for wave in (first, runs):
                missing = [run for run in dict.fromkeys(wave) if not Path(self.bundle_path(run)).is_dir()]
                self._all(pool.submit(make, run, self) for run in missing)
            by_bundle: dict[str, list[Cell]] = {}
            for cell in dict.fromkeys(cells):
                if not self._file(cell).is_file():
                    by_bundle.setdefault(self.bundle_path(cell.bundle), []).append(cell)
            self._all(pool.submit(measure, group, self) for group in by_bundle.values())

    def _all(self, futures: Iterable[Any]) -> None:
        pending = list(futures)
        for number, future in enumerate(as_completed(pending), start=1):
            print(f"{number}/{len(pending)}  {future.result()}", file=sys.stderr, flush=True)

    def _file(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    def write(self, cell: Cell, measured: SampleSet) -> None:
        """Keep a cell."""
        record = {"row": measured.row.record(), "texts": measured.texts[:NUM_TEXTS], "sampling": asdict(self.sampling)}
        write_text(self._file(cell), json.dumps(record, indent=1, allow_nan=False) + "\n")

    def record(self, cell: Cell) -> dict[str, Any]:
        """What is kept of a cell: its row, its first texts, how it was sampled."""
        found: dict[str, Any] = json.loads(self._file(cell).read_text())
        return found

    def row(self, cell: Cell) -> EvaluationRow:
        """The figures of a cell."""
        return EvaluationRow.from_record(self.record(cell)["row"])


def make(run: Run, study: Study) -> str:
    """Make a run, or go on with it; what it says goes to a log beside it."""
    torch.set_num_threads(1)
    folder = RunFolder(study.folder / "runs" / run.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    train = pretrain_run if isinstance(run.config, PretrainConfig) else distill_run
    with (folder.path / "log.txt").open("a") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
        train(run.config, folder, resume=True, device=torch.device("cpu"))  # type: ignore[arg-type]
    return run.name


def measure(cells: Sequence[Cell], study: Study) -> str:
    """Measure cells of one bundle."""
    torch.set_num_threads(1)
    bundle, sampling = load(study.bundle_path(cells[0].bundle)), study.sampling
    common: dict[str, Any] = {"num_samples": sampling.num_samples, "judge": sampling.judge, "seed": sampling.seed}
    real = {cell.role: cell for cell in cells if not cell.nfe}
    if real:
        corpus = str(bundle.provenance["corpus"])
        source = open_source(corpus, length=bundle.network().length, tokenizer=bundle.tokenizer)
        anchors = anchor_sets(source, sampling.num_samples, seed=sampling.seed)
        kept: list[SampleSet] = []
        evaluate(bundle, nfe=(), data=source.test, anchors=anchors, on_set=kept.append, **common)
        for one in kept:
            if one.row.role in real:
                study.write(real[one.row.role], one)
    for cell in cells:
        if cell.nfe:
            options = SamplingOptions(batch_size=sampling.batch_size, guidance=sampling.guidance)
            how: dict[str, Any] = {"role": cell.role, "sampler": cell.sampler, "nfe": [cell.nfe], "options": options}
            evaluate(bundle, on_set=lambda one, cell=cell: study.write(cell, one), **how, **common)  # type: ignore[misc]
    return cells[0].name
