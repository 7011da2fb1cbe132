"""``didi pretrain`` and ``didi distill``: a recipe, a YAML file and flags become one configuration and a run."""

import argparse
import contextlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
import yaml

from didi.apps.terminal import parse
from didi.data.source import Source, open_source
from didi.errors import UsageError
from didi.evaluation.row import machine_name
from didi.methods.base import Inputs
from didi.methods.didi_settings import DistillConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DistillationConfig, RunConfig
from didi.models.bundle import Bundle, load, save
from didi.models.untrusted import PlainDumper, read_yaml
from didi.recipes import DISTILL, PRESETS, PRETRAIN, preset, recipe
from didi.training.loop import RunFolder, run
from didi.training.trainer import make_trainer
from didi.world import default_device, world

Config = RunConfig


@dataclass(frozen=True)
class RunOptions:
    """Where and how long to run; everything below belongs to the recipe and can be overridden."""

    out: Path | None = None
    """Folder of the run (required): config.yaml, metrics.jsonl, checkpoints/ and, at the end, bundle/."""
    resume: bool = False
    """Go on from the newest checkpoint in --out."""
    max_steps: int | None = None
    """Steps of the trained network; the schedule is fitted to them, and a discriminator warms up no longer."""
    config: Path | None = None
    """A config.yaml of an earlier run, or any part of one; instead of a recipe, or over it."""
    preset: str | None = None
    """distill: the objective of the 'paper' or of the authors' 'released' code instead of ours."""
    device: str | None = None
    """cpu, cuda, cuda:1; the accelerator if there is one, by default."""


@dataclass(frozen=True)
class PretrainCommand:
    """Pre-train a masked-diffusion teacher: didi pretrain RECIPE --out RUN [flags]."""

    run: Annotated[RunOptions, tyro.conf.arg(name="")]
    config: Annotated[PretrainConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class DistillCommand:
    """Distil a teacher into a few-step student by DiDi-Instruct: didi distill RECIPE --out RUN [flags]."""

    run: Annotated[RunOptions, tyro.conf.arg(name="")]
    config: Annotated[DistillConfig, tyro.conf.arg(name="")]


def pretrain(args: Sequence[str]) -> None:
    """Run ``didi pretrain`` with the words after it."""
    options, config = resolve("pretrain", PretrainCommand(RunOptions(), PretrainConfig()), PRETRAIN, args)
    pretrain_run(config, _folder(options, "pretrain"), resume=options.resume, device=_device(options.device))


def pretrain_run(config: PretrainConfig, folder: RunFolder, *, resume: bool, device: torch.device) -> Path:
    """Pre-train by a resolved configuration; returns the folder of the bundle."""
    source = open_source(
        config.data.corpus,
        length=config.data.length,
        vocab_size=config.data.vocab_size,
        tokenizer=config.data.tokenizer,
        seed=config.seed,
    )
    with _ours(folder, config, resume=resume):
        trainer = make_trainer(config, Inputs(source, device, folder.path))
        run(trainer, config.loop, folder, resume=resume)
        return _finish(trainer.bundle(), config, folder, device)


def distill(args: Sequence[str]) -> None:
    """Run ``didi distill`` with the words after it."""
    options, config = resolve("distill", DistillCommand(RunOptions(), DistillConfig()), DISTILL, args)
    distill_run(config, _folder(options, "distill"), resume=options.resume, device=_device(options.device))


def distill_run(config: DistillationConfig, folder: RunFolder, *, resume: bool, device: torch.device) -> Path:
    """Distil by a resolved configuration; returns the folder of the bundle."""
    if not config.teacher:
        raise UsageError(
            f"distill {config.recipe} needs a teacher: --teacher takes a bundled name, a bundle folder (RUN/bundle of "
            "didi pretrain) or a Hub repository"
        )
    teacher = load(config.teacher)
    source = distillation_source(config, teacher)
    with _ours(folder, config, resume=resume):
        trainer = make_trainer(config, Inputs(source, device, folder.path, teacher))
        run(trainer, config.loop, folder, resume=resume)
        return _finish(trainer.bundle(), config, folder, device, teacher=teacher.provenance)


@contextlib.contextmanager
def _ours(folder: RunFolder, config: Config, *, resume: bool) -> Iterator[None]:
    """The folder of a run, locked and prepared by the main process for all."""
    with folder.locked() if world().is_main else contextlib.nullcontext():
        if world().is_main:
            folder.prepare(_yaml(config), resume=resume)
        world().wait()
        yield


def distillation_source(config: DistillationConfig, teacher: Bundle) -> Source:
    """The corpus of a distillation, read by the teacher's own tokenizer unless the settings name another."""
    data = config.data
    is_named = data.tokenizer is not None or data.vocab_size is not None
    return open_source(
        data.corpus,
        length=data.length,
        vocab_size=data.vocab_size,
        tokenizer=data.tokenizer if is_named else teacher.tokenizer,
        seed=config.seed,
    )


def resolve(name: str, default: Any, recipes: Mapping[str, Any], args: Sequence[str]) -> tuple[Any, Any]:
    """Options and settings of a command: of these, recipe, then preset, then YAML file, then flags; the later wins.

    Args:
        name: of the command.
        default: what is parsed: a record of ``run``, options of which are ``max_steps``, ``config`` and ``preset``, and
            of ``config``.
        recipes: by name.
        args: the words after the command.

    Raises:
        UsageError: there is no recipe of that name, or a word does not fit.
    """
    prog = f"didi {name}"
    has_recipe = bool(args) and not args[0].startswith("-")
    scanner = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False, exit_on_error=False)
    scanner.add_argument("--config", type=Path)
    scanner.add_argument("--preset")
    early = argparse.Namespace(config=None, preset=None)
    try:
        scanner.parse_known_args(args, namespace=early)
    except argparse.ArgumentError:  # a flag without its value; the full parser says so better
        early = argparse.Namespace(config=None, preset=None)
    overrides = read_yaml(early.config) if early.config else {}
    chosen = args[0] if has_recipe else overrides.get("recipe")
    if chosen in recipes or has_recipe:
        base = recipe(recipes, str(chosen))
    elif early.config or "--help" in args or "-h" in args:
        base = default.config
    else:
        raise UsageError(f"the recipe comes first: {prog} RECIPE [flags], one of {', '.join(recipes)}")
    if early.preset is not None:
        if early.config is not None:
            raise UsageError("--preset changes a recipe and --config names settings; give one of them")
        if not isinstance(base, DistillConfig):
            raise UsageError(f"--preset is for distill, with {' or '.join(PRESETS)}; got it with {name}")
        base = preset(base, early.preset)
    if overrides:
        base = parse(type(base), list(_flags(overrides)), prog=str(early.config), default=base)
    prog = f"{prog} {chosen}" if has_recipe else prog
    parsed = parse(type(default), args[has_recipe:], prog=prog, default=replace(default, config=base))
    return parsed.run, _limited(parsed.config, parsed.run.max_steps)


def _folder(options: RunOptions, name: str) -> RunFolder:
    if options.out is None:
        raise UsageError(f"didi {name} needs --out RUN, the folder of the run")
    return RunFolder(options.out)


def _limited(config: Config, max_steps: int | None) -> Config:
    if max_steps is None:
        return config
    if max_steps < 1:
        raise UsageError(f"--max-steps is 1 or more; got {max_steps}")
    return config.limited(max_steps)


def _flags(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Settings as the flags that mean the same, so that a file and the command line have one parser."""
    for key, value in settings.items():
        name = f"{prefix}{key}".replace("_", "-")
        if isinstance(value, dict):
            yield from _flags(value, f"{name}.")
        elif isinstance(value, bool):
            head, _, last = name.rpartition(".")
            yield f"--{head}{'.' if head else ''}{'' if value else 'no-'}{last}"
        else:
            yield from (f"--{name}", str(value))


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
    return yaml.dump(asdict(config), Dumper=PlainDumper, sort_keys=False)


def _finish(bundle: Bundle, config: Config, folder: RunFolder, device: torch.device, **more: Any) -> Path:
    """Write the bundle with what a reader needs to trust or repeat it; its path is the command's result."""
    bundle.provenance = {
        "recipe": config.recipe,
        "corpus": config.data.corpus,
        "seed": config.seed,
        "machine": machine_name(device),
        "python": platform.python_version(),
        "settings": asdict(config),
        **more,
    }
    path = folder.path / "bundle"
    if world().is_main:
        save(bundle, path)
        print(path)
    world().wait()
    return path
