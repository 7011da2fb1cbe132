"""Reading untrusted files: bounded size and depth, no aliases, settings of the right kind."""

import json
import math
import re
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from tokenizers import Tokenizer
from torch import Tensor

from didi.errors import UsageError, suggestion

MAX_SETTINGS_BYTES = 2**24
MAX_TOKENIZER_BYTES = 2**27  # the largest known is 34 MB
MAX_INT = 2**31 - 1
MAX_FLOAT = 2**53  # whole numbers up to it are numbers without rounding
EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")  # 1e-4: a number without a dot, which YAML 1.1 takes for a text
Config = TypeVar("Config")


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases: merged a few times over, they expand to more than a memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)


class PlainDumper(yaml.SafeDumper):
    """Writes what ``read_yaml`` reads: what occurs twice is written twice."""

    def ignore_aliases(self, _data: Any) -> bool:
        """Always."""
        return True


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UsageError: the file is too large, too deep, not JSON or no object.
    """
    return _mapping(file, json.loads, "JSON")


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping without aliases.

    Raises:
        UsageError: the file is too large, too deep, not YAML or no mapping.
    """
    return _mapping(file, lambda text: yaml.load(text, _PlainLoader), "YAML")


def _mapping(file: Path, parse: Any, kind: str) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_SETTINGS_BYTES:
            raise UsageError(f"{file} is larger than {MAX_SETTINGS_BYTES} bytes, which no settings are")
        content = parse(file.read_text(encoding="utf-8"))
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{file} is not readable ({error.strerror})") from error
    except RecursionError as error:
        raise UsageError(f"{file} is not valid {kind}: too deep") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:  # the latter of malformed YAML tags
        raise UsageError(f"{file} is not valid {kind}: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{file} holds a {kind} mapping of names; got {type(content).__name__}")
    return content


def read_tokenizer(file: Path) -> Tokenizer:
    """A ``tokenizer.json`` as it is.

    Raises:
        UsageError: the file is too large or no tokenizer.
    """
    if file.stat().st_size > MAX_TOKENIZER_BYTES:
        raise UsageError(f"{file} is larger than {MAX_TOKENIZER_BYTES} bytes, which no tokenizer is")
    try:
        return Tokenizer.from_file(str(file))
    except BaseException as error:  # the Rust side raises bare Exception, and BaseException where it panics
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UsageError(f"{file} is not a tokenizer.json: {str(error)[:300]}") from error


def record_from(
    kind: type[Config],
    settings: Mapping[str, Any],
    *,
    source: str,
    base: Config | None = None,
    is_bounded: bool = False,
) -> Config:
    """A settings dataclass from plain values, checked field by field before it is built; fields may be dataclasses.

    The one reader of settings in files: ``config.json`` of a network, ``config.yaml`` of a run.

    Args:
        kind: the dataclass. Its fields are numbers, truth values, texts, choices, tuples of these, or such dataclasses.
        settings: values by field name.
        source: named in messages.
        base: values of the fields that are not given; without it, those without a default must be.
        is_bounded: whole numbers lie in [0, ``MAX_INT``] and numbers are finite, as sizes of a network are.

    Raises:
        UsageError: a setting is unknown, missing or of another kind, or the dataclass refuses its value.
    """
    return _record(kind, settings, source, base, is_bounded, "")


def config_from(
    kind: type[Config], settings: Mapping[str, Any], weights: Mapping[str, Tensor], *, source: str
) -> Config:
    """As ``record_from`` for a network's settings, which are checked against the size of its weights as well.

    Raises:
        UsageError: a setting is unknown, missing, of another kind, or larger than the weights can bear.
    """
    config = record_from(kind, settings, source=source, is_bounded=True)
    num_elements = sum(value.numel() for value in weights.values())
    shape = vars(config)
    largest = max(shape.get(name, 0) or 0 for name in ("vocab_size", "hidden_size", "cond_dim", "num_codes"))
    if shape.get("num_blocks", 0) > len(weights) or largest * shape.get("hidden_size", 0) > num_elements:
        raise UsageError(
            f"{source} has {shape.get('num_blocks')} blocks of width {shape.get('hidden_size')}, too large for the "
            f"{num_elements:,} numbers of its weights"
        )
    return config


def _record(kind: Any, settings: Mapping[str, Any], source: str, base: Any, is_bounded: bool, prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    known = {one.name: one for one in fields(kind)}
    for name in settings:
        if name not in known:
            hint = suggestion(name, known) or f"; it has {', '.join(prefix + one for one in known)}"
            raise UsageError(f"{source} has no setting {reprlib.repr(prefix + name)}{hint}")
    values: dict[str, Any] = {} if base is None else {name: getattr(base, name) for name in known}
    for name, one in known.items():
        has_default = one.default is not MISSING or one.default_factory is not MISSING
        if name in settings:
            given, held = settings[name], values.get(name)
            values[name] = _value(given, hints[name], source, held, is_bounded, prefix + name)
        elif base is None and not has_default:
            raise UsageError(f"{source} lacks the setting {prefix}{name}")
    try:
        return kind(**values)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def _value(given: Any, hint: Any, source: str, base: Any, is_bounded: bool, name: str) -> Any:
    if is_dataclass(hint):
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            raise UsageError(f"{name} in {source} is a mapping of settings; got {reprlib.repr(given)}")
        return _record(hint, given, source, base, is_bounded, f"{name}.")
    if isinstance(given, str) and EXPONENT.fullmatch(given) and not _fits(given, hint, is_bounded):
        given = float(given)
    if not _fits(given, hint, is_bounded):
        raise UsageError(f"{name} in {source} is {_described(hint, is_bounded)}; got {reprlib.repr(given)}")
    if get_origin(hint) is tuple:
        return tuple(given)
    return float(given) if type(given) is int and not _fits(given, hint, is_bounded, is_exact=True) else given


def _fits(value: Any, hint: Any, is_bounded: bool, *, is_exact: bool = False) -> bool:
    """Whether a plain value is of a kind; a whole number is a number too, unless ``is_exact``."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, one, is_bounded, is_exact=is_exact) for one in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(_fits(one, get_args(hint)[0], is_bounded) for one in value)
    if hint is float:
        is_number = type(value) is float or (type(value) is int and abs(value) <= MAX_FLOAT and not is_exact)
        return is_number and (math.isfinite(value) if is_bounded else not math.isnan(value))
    if hint is int:
        return type(value) is int and (not is_bounded or 0 <= value <= MAX_INT)
    return type(value) is hint


def _described(hint: Any, is_bounded: bool) -> str:
    """A kind of value, in words."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_described(one, is_bounded) for one in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a list, of which each is {_described(get_args(hint)[0], is_bounded)}"
    whole = f"a whole number in [0, {MAX_INT}]" if is_bounded else "a whole number"
    number = "a finite number" if is_bounded else "a number"
    return {int: whole, float: number, bool: "true or false", str: "a text", type(None): "null"}.get(hint, str(hint))
