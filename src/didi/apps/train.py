"""``didi pretrain`` and ``didi distill``: runs from a recipe, a YAML file and flags."""

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
from didi.training.fit import fitted_to_minutes, fitted_to_passes
from didi.training.loop import RunFolder, run
from didi.training.trainer import make_trainer


@dataclass(frozen=True)
class RunOptions:
    """Folder and length of the run; all flags below are settings of the recipe and can be overridden."""

    out: Path | None = None
    """Folder of the run (required): config.yaml, metrics.jsonl, checkpoints/ and, at the end, bundle/."""
    resume: bool = False
    """Resume from the newest checkpoint of the run in --out; without it, --out must not have a run."""
    overwrite: bool = False
    """Delete the run and the bundle in --out, and start a new run."""
    max_steps: int | None = None
    """Steps of the trained network; schedules are fitted to this number, and a discriminator warms up for at most as
    many steps."""
    max_minutes: float | None = None
    """Wall-clock minutes: a few steps are timed, and the run is shortened to the number of steps that fits."""
    max_passes: float | None = None
    """Sequence passes through networks in training; a pass with gradients counts as three. A budget for comparing
    methods that does not depend on the machine. The run is shortened to it, never lengthened beyond loop.steps."""
    method: str = "didi"
    """distill: didi, sdtt, dcd, dimo or mmd; a recipe of pretrain has its own method."""
    config: Path | None = None
    """A config.yaml of an earlier run, or any part of one, instead of a recipe or overriding it."""
    preset: str | None = None
    """distill: objective instead of the recipe's: paper, released (authors' code) or two-moves (docs/recipes.md)."""
    device: str | None = None
    """cpu, cuda, cuda:1; by default the accelerator if there is one."""


def command_of(settings: RunConfig, doc: str) -> Any:
    """A dataclass instance with options (``run``) and settings (``config``); fields are flags without a prefix."""
    flat = tyro.conf.arg(name="")
    kinds = [("run", Annotated[RunOptions, flat]), ("config", Annotated[type(settings), flat])]
    command = make_dataclass("Command", kinds, frozen=True)
    command.__doc__ = doc
    return command(RunOptions(), settings)


def pretrain(args: Sequence[str]) -> None:
    """Run ``didi pretrain`` with the arguments after the command's name."""
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
    """Pre-train with a resolved configuration, on its corpus or on ``source``; returns the folder of the bundle."""
    config = config.with_network_of_start()
    folder.refuse_deletion(overwrite=overwrite, start=config.start)
    source = source or pretraining_source(config)
    with _locked_and_prepared(folder, config, resume=resume, overwrite=overwrite):
        trainer = make_trainer(config, Inputs(source, device, folder.path))
        run(trainer, config.loop, folder, resume=resume)
        bundle = trainer.bundle()
        return _finish(bundle, config, folder, device, _block_layout(config, None), **bundle.provenance)


def distill(args: Sequence[str]) -> None:
    """Run ``didi distill`` with the arguments after the command's name."""
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
    """Add a hint about ``--resume`` to the message of an interruption."""
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; continue with --resume") from stopped


def _in_time(config: Any, options: RunOptions, folder: RunFolder, inputs: Callable[[], Inputs]) -> Any:
    """``config`` shortened to ``--max-minutes`` or ``--max-passes``; a resumed run keeps its length.

    ``--max-steps`` is already applied by ``settings.resolve``.
    """
    bounds = {name: getattr(options, name.replace("-", "_")) for name in ("max-steps", "max-minutes", "max-passes")}
    flags = [name for name, value in bounds.items() if value is not None]
    if len(flags) > 1:
        raise UsageError(f"--{' and --'.join(flags)} set the length of the run; give one of them")
    if flags in ([], ["max-steps"]):
        return config
    (flag,) = flags
    bound = bounds[flag]
    if not bound > 0:
        raise UsageError(f"--{flag} is positive; got {bound}")
    if options.resume:
        saved = folder.settings
        loop = read_yaml(saved).get("loop") if saved.is_file() else None
        steps = loop.get("steps") if isinstance(loop, dict) else None
        if steps == 0:
            raise UsageError(f"--{flag} sets loop.steps, which stays 0 in the run in {folder.path}: leave --{flag} out")
        if type(steps) is not int or steps < 1:
            raise UsageError(f"--resume keeps the length of a run; {saved} has no loop.steps: give --max-steps")
        return config.limited(steps)
    limited = (fitted_to_minutes if flag == "max-minutes" else fitted_to_passes)(config, inputs(), bound)
    if limited.loop.steps == config.loop.steps and process_group().is_main:
        line = f"all {config.loop.steps} steps fit in --{flag} {bound:g}; --loop.steps sets more"
        print(line, file=sys.stderr, flush=True)
    return limited


def _teacher(config: DistillationConfig) -> Bundle:
    if not config.teacher:
        raise UsageError(
            f"distill {config.recipe} needs a teacher: --teacher takes a bundled name, a bundle folder (RUN/bundle of "
            "didi pretrain) or a Hub repository"
        )
    bundle = load(config.teacher)
    teacher_of(bundle)  # refuses an unfit teacher; not every method checks it
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
    """Distil with a resolved configuration, on its corpus or on ``source``; returns the folder of the bundle."""
    teacher = _teacher(config)
    start = getattr(config, "start", "")
    folder.refuse_deletion(overwrite=overwrite, teacher=config.teacher, start=start)
    source = source or distillation_source(config, teacher)
    with _locked_and_prepared(folder, config, resume=resume, overwrite=overwrite):
        trainer = make_trainer(config, Inputs(source, device, folder.path, teacher))
        # The provenance of a bundle with a student is that of the student, and has that of its teacher.
        origin: dict[str, Any] = {"teacher": teacher.provenance.get("teacher", teacher.provenance)}
        if start:
            origin["start"] = load(start).provenance
        run(trainer, config.loop, folder, resume=resume)
        layout, bundle = _block_layout(config, teacher), trainer.bundle()
        if bundle.process.name != teacher.process.name:
            origin[TEACHER_PROCESS] = teacher.process.name
        return _finish(bundle, config, folder, device, layout, **origin)


@contextlib.contextmanager
def _locked_and_prepared(folder: RunFolder, config: RunConfig, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Lock and prepare the folder of a run in the main process; its error is raised in all processes."""
    with contextlib.ExitStack() as stack:
        errors: list[Exception] = []
        if process_group().is_main:
            try:
                stack.enter_context(folder.locked())
                folder.prepare(_yaml(config), resume=resume, overwrite=overwrite, upgrade=type(config).upgraded)
            except (DidiError, OSError) as error:
                errors = [error]
        for gathered in process_group().all_gather_items(errors):
            raise gathered
        yield


def distillation_source(config: DistillationConfig, teacher: Bundle) -> Source:
    """The corpus of a distillation, with the teacher's tokenizer and block layout unless the settings override them."""
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


def _block_layout(config: RunConfig, teacher: Bundle | None) -> BlockLayout:
    """Block layout of a run: that of the settings, else that of the teacher."""
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


def _yaml(config: RunConfig) -> str:
    record = {"method": method_of(config).name} | asdict(config)
    return yaml.dump(record, Dumper=PlainDumper, sort_keys=False)


def _finish(
    bundle: Bundle, config: RunConfig, folder: RunFolder, device: torch.device, layout: BlockLayout, **more: Any
) -> Path:
    """Write the bundle with its provenance, and print its path; returns the path."""
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
