"""``didi pretrain`` and ``didi distill``: a recipe, a YAML file and flags become one configuration and a run."""

import contextlib
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
import yaml

from didi.apps.settings import early, resolve, settings_named
from didi.data.blocks import BLOCK_LAYOUT, BlockLayout, block_layout_of
from didi.data.source import Source, open_source
from didi.errors import DidiError, Interrupted, UsageError
from didi.evaluation.machine import machine_name
from didi.methods import find_method, method_of
from didi.methods.base import Inputs, teacher_of
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DistillationConfig, RunConfig
from didi.models.bundle import Bundle, load, save
from didi.models.card import TEACHER_PROCESS
from didi.models.untrusted import PlainDumper, read_yaml
from didi.process_group import default_device, process_group
from didi.recipes import PRETRAIN, distillation_recipes
from didi.training.fit import fitted, fitted_to_passes
from didi.training.loop import RunFolder, run
from didi.training.trainer import make_trainer

Config = RunConfig


@dataclass(frozen=True)
class RunOptions:
    """Where and how long to run; everything below belongs to the recipe and can be overridden."""

    out: Path | None = None
    """Folder of the run (required): config.yaml, metrics.jsonl, checkpoints/ and, at the end, bundle/."""
    resume: bool = False
    """Go on from the newest checkpoint in --out, which holds a run; otherwise --out holds none."""
    overwrite: bool = False
    """Start anew in --out: delete the run and the bundle that are there."""
    max_steps: int | None = None
    """Steps of the trained network; the schedule is fitted to them, and a discriminator warms up no longer."""
    max_minutes: float | None = None
    """Wall-clock minutes: a few steps are timed, and the schedule is fitted to as many as fit."""
    max_passes: float | None = None
    """Sequences through a network in training, one that keeps a gradient counting three times: a budget that does not
    depend on the machine, to compare methods. The schedule is fitted to it; no run is longer than its loop.steps."""
    method: str = "didi"
    """distill: the method, a name in didi.methods.METHODS."""
    config: Path | None = None
    """A config.yaml of an earlier run, or any part of one; instead of a recipe, or over it."""
    preset: str | None = None
    """distill: the objective of the 'paper' or of the authors' 'released' code instead of ours."""
    device: str | None = None
    """cpu, cuda, cuda:1; the accelerator if there is one, by default."""


def command_of(settings: RunConfig, doc: str) -> Any:
    """A record of options and of a method's settings, whose fields are flags without a prefix."""
    flat = tyro.conf.arg(name="")
    kinds = [("run", Annotated[RunOptions, flat]), ("config", Annotated[type(settings), flat])]
    command = make_dataclass("Command", kinds, frozen=True)
    command.__doc__ = doc
    return command(RunOptions(), settings)


def pretrain(args: Sequence[str]) -> None:
    """Run ``didi pretrain`` with the words after it."""
    doc = f"Pre-train a teacher: didi pretrain RECIPE --out RUN [flags]. RECIPE is one of {', '.join(PRETRAIN)}."
    settings = settings_named(args, PRETRAIN, PretrainConfig())
    options, config = resolve("pretrain", command_of(settings, doc), PRETRAIN, args)
    if early(args, "--method") is not None:
        raise UsageError("--method is for distill; a recipe of pretrain has its own")
    folder, device = _folder(options, "pretrain"), _device(options.device)
    config = _in_time(config, options, folder, lambda: Inputs(pretraining_source(config), device))
    with _resumable():
        pretrain_run(config, folder, resume=options.resume, device=device, overwrite=options.overwrite)


def pretraining_source(config: PretrainConfig) -> Source:
    """The corpus of a pre-training."""
    data = config.data
    return open_source(
        data.corpus,
        length=data.length,
        vocab_size=data.vocab_size,
        tokenizer=data.tokenizer,
        seed=config.seed,
        block_layout=_block_layout(config, None),
    )


def pretrain_run(
    config: PretrainConfig,
    folder: RunFolder,
    *,
    resume: bool,
    device: torch.device,
    source: Source | None = None,
    overwrite: bool = False,
) -> Path:
    """Pre-train by a resolved configuration, on its corpus or on ``source``; returns the folder of the bundle."""
    source = source or pretraining_source(config)
    with _ours(folder, config, resume=resume, overwrite=overwrite):
        trainer = make_trainer(config, Inputs(source, device, folder.path))
        run(trainer, config.loop, folder, resume=resume)
        return _finish(trainer.bundle(), config, folder, device, _block_layout(config, None))


def distill(args: Sequence[str]) -> None:
    """Run ``didi distill`` with the words after it."""
    name = early(args, "--method") or "didi"
    recipes = distillation_recipes(name)
    doc = (
        "Distil a teacher into a few-step student: didi distill RECIPE [--method M] --out RUN [flags]. "
        f"RECIPE is one of {', '.join(recipes)}."
    )
    options, config = resolve("distill", command_of(find_method(name).settings_type(), doc), recipes, args)
    folder, device = _folder(options, "distill"), _device(options.device)

    def inputs() -> Inputs:
        teacher = _teacher(config)
        return Inputs(distillation_source(config, teacher), device, teacher=teacher)

    config = _in_time(config, options, folder, inputs)
    with _resumable():
        distill_run(config, folder, resume=options.resume, device=device, overwrite=options.overwrite)


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
    """Tell the user of a command that has it of ``--resume``."""
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; go on with --resume") from stopped


def _in_time(config: Any, options: RunOptions, folder: RunFolder, inputs: Callable[[], Inputs]) -> Any:
    """``config`` with the length that ``--max-minutes`` or ``--max-passes`` allows; a resumed run keeps its length."""
    bounds = {name: getattr(options, name.replace("-", "_")) for name in ("max-steps", "max-minutes", "max-passes")}
    given = [name for name, value in bounds.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"--{' and --'.join(given)} set the length of the run; give one of them")
    if given in ([], ["max-steps"]):
        return config
    bound = bounds[given[0]]
    if not bound > 0:
        raise UsageError(f"--{given[0]} is positive; got {bound}")
    if options.resume:
        begun = folder.settings
        loop = read_yaml(begun).get("loop") if begun.is_file() else None
        steps = loop.get("steps") if isinstance(loop, dict) else None
        if steps == 0:
            raise UsageError(f"--{given[0]} sets loop.steps, of which the run in {folder.path} has 0: leave it out")
        if type(steps) is not int or steps < 1:
            raise UsageError(f"--resume keeps the length of a run; {begun} does not say loop.steps: give --max-steps")
        return config.limited(steps)
    limited = (fitted if given == ["max-minutes"] else fitted_to_passes)(config, inputs(), bound)
    if limited.loop.steps == config.loop.steps and process_group().is_main:
        line = f"all {config.loop.steps} steps fit in --{given[0]} {bound:g}; --loop.steps sets more"
        print(line, file=sys.stderr, flush=True)
    return limited


def _teacher(config: DistillationConfig) -> Bundle:
    if not config.teacher:
        raise UsageError(
            f"distill {config.recipe} needs a teacher: --teacher takes a bundled name, a bundle folder (RUN/bundle of "
            "didi pretrain) or a Hub repository"
        )
    bundle = load(config.teacher)
    teacher_of(bundle)  # for methods that do not ask for it themselves
    return bundle


def distill_run(
    config: DistillationConfig,
    folder: RunFolder,
    *,
    resume: bool,
    device: torch.device,
    source: Source | None = None,
    overwrite: bool = False,
) -> Path:
    """Distil by a resolved configuration, on its corpus or on ``source``; returns the folder of the bundle."""
    teacher = _teacher(config)
    if overwrite and folder.bundle.exists() and Path(config.teacher).resolve() == folder.bundle.resolve():
        raise UsageError(f"--overwrite deletes the bundle in {folder.path}, which is the teacher: choose another --out")
    source = source or distillation_source(config, teacher)
    with _ours(folder, config, resume=resume, overwrite=overwrite):
        trainer = make_trainer(config, Inputs(source, device, folder.path, teacher))
        run(trainer, config.loop, folder, resume=resume)
        layout = _block_layout(config, teacher)
        bundle, origin = trainer.bundle(), dict[str, Any](teacher=teacher.provenance)
        if bundle.process.name != teacher.process.name:
            origin[TEACHER_PROCESS] = teacher.process.name
        return _finish(bundle, config, folder, device, layout, **origin)


@contextlib.contextmanager
def _ours(folder: RunFolder, config: Config, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """The folder of a run, locked and prepared by the main process for all; all raise what it raises."""
    with contextlib.ExitStack() as held:
        refused: list[Exception] = []
        if process_group().is_main:
            try:
                held.enter_context(folder.locked())
                folder.prepare(_yaml(config), resume=resume, overwrite=overwrite, upgrade=type(config).upgraded)
            except (DidiError, OSError) as error:
                refused = [error]
        for found in process_group().all_gather_items(refused):
            raise found
        yield


def distillation_source(config: DistillationConfig, teacher: Bundle) -> Source:
    """The corpus of a distillation, with the teacher's tokenizer and block layout unless the settings name others."""
    data = config.data
    is_named = data.tokenizer is not None or data.vocab_size is not None
    return open_source(
        data.corpus,
        length=data.length,
        vocab_size=data.vocab_size,
        tokenizer=data.tokenizer if is_named else teacher.tokenizer,
        seed=config.seed,
        block_layout=_block_layout(config, teacher),
    )


def _block_layout(config: Config, teacher: Bundle | None) -> BlockLayout:
    """The layout of a run's rows: the one that is set, else the teacher's."""
    return config.data.block_layout or block_layout_of(teacher.provenance if teacher else {})


def _folder(options: RunOptions, name: str) -> RunFolder:
    if options.out is None:
        raise UsageError(f"didi {name} needs --out RUN, the folder of the run")
    if options.resume and options.overwrite:
        raise UsageError("--resume continues the run in --out and --overwrite replaces it; give one of them")
    folder = RunFolder(options.out)
    folder.check(resume=options.resume, overwrite=options.overwrite)  # before data and teacher are read
    return folder


def _device(name: str | None) -> torch.device:
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device is cpu, cuda or cuda:N, and present; got {name!r}") from error
    return device


def _yaml(config: Config) -> str:
    record = {"method": method_of(config).name} | asdict(config)
    return yaml.dump(record, Dumper=PlainDumper, sort_keys=False)


def _finish(
    bundle: Bundle, config: Config, folder: RunFolder, device: torch.device, layout: BlockLayout, **more: Any
) -> Path:
    """Write the bundle with what a reader needs to trust or repeat it; its path is the command's result."""
    bundle.provenance = {
        "recipe": config.recipe,
        "method": method_of(config).name,
        "corpus": config.data.corpus,
        BLOCK_LAYOUT: layout,
        "seed": config.seed,
        "machine": machine_name(device),
        "python": platform.python_version(),
        "settings": asdict(config),
        **more,
    }
    path = folder.bundle
    if process_group().is_main:
        save(bundle, path)
        print(path)
    process_group().barrier()
    return path
