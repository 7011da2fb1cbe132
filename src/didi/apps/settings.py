"""Settings of a training command from its arguments: recipe, then preset, then YAML file, then flags."""

import argparse
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from didi.apps.terminal import parse
from didi.errors import UsageError, suggestion
from didi.methods import method_of
from didi.methods.didi_settings import DistillConfig
from didi.methods.settings import CUSTOM, RENAMED_RECIPES, RunConfig
from didi.models.untrusted import read_yaml, record_from
from didi.recipes import recipe
from didi.recipes.presets import preset


def resolve(name: str, default: Any, recipes: Mapping[str, Any], args: Sequence[str]) -> tuple[Any, Any]:
    """Options and settings of a command.

    Settings are taken from the recipe, the preset, the YAML file and the flags; a later source overrides an earlier.

    Args:
        name: name of the command.
        default: the record that is parsed: ``run``, options with ``max_steps``, ``config`` and ``preset``, and
            ``config``, the settings.
        recipes: recipes by name.
        args: the arguments after the command's name.

    Returns:
        Options (``run``) and settings (``config``).

    Raises:
        UsageError: there is no recipe of that name, or an argument is invalid.
    """
    prog = f"didi {name}"
    if (value := early(args, "--recipe")) is not None:
        raise UsageError(f"the recipe comes first: {prog} RECIPE [flags]; got --recipe {value}")
    has_recipe = bool(args) and not args[0].startswith("-")
    config_file, preset_name = early(args, "--config"), early(args, "--preset")
    overrides = _overrides_in(config_file)
    expected = method_of(default.config).name
    if (method := overrides.pop("method", expected)) != expected:
        raise UsageError(f"{prog} takes settings of method {expected} here; those of {config_file} are of {method}")
    _check_recipe_in_file(overrides, str(config_file), recipes)
    chosen = args[0] if has_recipe else overrides.get("recipe")
    if chosen in recipes or has_recipe:
        base = recipe(recipes, str(chosen))
    elif config_file or "--help" in args or "-h" in args:
        base = default.config
    else:
        raise UsageError(f"the recipe comes first: {prog} RECIPE [flags], one of {', '.join(recipes)}")
    if preset_name is not None:
        if config_file is not None:
            raise UsageError("--preset changes a recipe and --config names settings; give one of them")
        if not isinstance(base, DistillConfig):
            raise UsageError(f"--preset is for distill; got it with {name}: leave it out")
        base = preset(base, preset_name)
    if overrides:
        base = record_from(type(base), base.upgraded(overrides, base), source=str(config_file), base=base)
    prog = f"{prog} {chosen}" if has_recipe else prog
    flags = _current_flags(args[has_recipe:], base)
    parsed = parse(type(default), flags, prog=prog, default=replace(default, config=base))
    return parsed.run, _limited(parsed.config, parsed.run.max_steps)


def settings_named(args: Sequence[str], recipes: Mapping[str, RunConfig], default: RunConfig) -> RunConfig:
    """Default settings of the class that the arguments of a command need, which depends on the method.

    Args:
        args: the arguments after the command's name.
        recipes: recipes of several methods, by name.
        default: default settings, for arguments that name neither a recipe nor a method.

    Returns:
        Settings of the type of the recipe in the first argument, else of the recipe or the method in the file of
        ``--config``.

    Raises:
        UsageError: the file is not readable.
    """
    types = {method_of(config).name: type(config) for config in recipes.values()}
    if args and not args[0].startswith("-"):
        name = args[0]
    else:
        overrides = _overrides_in(early(args, "--config"))
        name = str(overrides.get("recipe"))
        default = types.get(str(overrides.get("method")), type(default))()
    return type(recipes[name])() if name in recipes else default


def _overrides_in(file: str | None) -> dict[str, Any]:
    """Settings of a file, with the present name of their recipe; none without a file."""
    overrides = read_yaml(Path(file)) if file else {}
    if isinstance(name := overrides.get("recipe"), str):
        overrides["recipe"] = RENAMED_RECIPES.get(name, name)
    return overrides


def _check_recipe_in_file(overrides: Mapping[str, Any], source: str, recipes: Mapping[str, Any]) -> None:
    """Refuse a file whose recipe does not exist, since there are no defaults for settings that the file leaves out."""
    if "recipe" not in overrides:
        return
    name = overrides["recipe"]
    if not isinstance(name, str):
        raise UsageError(f"recipe in {source} is a text; got {reprlib.repr(name)}")
    if name not in (*recipes, CUSTOM):
        raise UsageError(
            f"recipe in {source} is one of {', '.join(recipes)}, or {CUSTOM} for settings that begin with no recipe; "
            f"got {name!r}{suggestion(name, recipes)}"
        )


def early(args: Sequence[str], flag: str) -> str | None:
    """Value of a flag that is needed before the others are parsed; None if it is missing or has no value."""
    scanner = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scanner.add_argument(flag, dest="value")
    try:
        return scanner.parse_known_args(args)[0].value
    except argparse.ArgumentError:  # the full parser reports the error with a better message
        return None


def _current_flags(args: Sequence[str], base: RunConfig) -> Sequence[str]:
    """``args`` with flags of older versions, before ``objective.trajectory``, replaced; see ``RunConfig.upgraded``."""
    scanner = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=argparse.SUPPRESS
    )
    scanner.add_argument("--objective.trajectory", dest="trajectory")
    scanner.add_argument("--objective.moves", dest="moves", type=int)
    for prefix, value in (("", True), ("no-", False)):
        spellings = (f"--objective.{prefix}score-decomposition", f"--objective.{prefix}score_decomposition")
        scanner.add_argument(*spellings, dest="score_decomposition", action="store_const", const=value)
    try:
        parsed, rest = scanner.parse_known_args(args)
    except argparse.ArgumentError:  # the full parser reports the error with a better message
        return args
    older = vars(parsed)
    if not older:
        return args
    objective = base.upgraded({"objective": older}, base)["objective"]
    return [*rest, *(word for name, value in objective.items() for word in (f"--objective.{name}", str(value)))]


def _limited(config: RunConfig, max_steps: int | None) -> RunConfig:
    if max_steps is None:
        return config
    if max_steps < 1:
        raise UsageError(f"--max-steps is 1 or more; got {max_steps}")
    return config.limited(max_steps)
