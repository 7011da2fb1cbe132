"""Readers of untrusted files: bounded size and depth, no YAML aliases, checked types of settings."""

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
MAX_TOKENIZER_BYTES = 2**27  # the largest tokenizer that we know has 34 MB
MAX_INT = 2**31 - 1
MAX_FLOAT = 2**53  # whole numbers up to this are exact in float64
# A number such as 1e-4, which YAML 1.1 reads as text, since it has no dot.
EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
Config = TypeVar("Config")


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, because nested aliases can expand beyond the memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)


class PlainDumper(yaml.SafeDumper):
    """Writes YAML without aliases, as ``read_yaml`` requires."""

    def ignore_aliases(self, _data: Any) -> bool:
        """True: repeated values are written again."""
        return True


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UsageError: the file is too large, too deep, or not a JSON object.
    """
    return _mapping(file, json.loads, "JSON")


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping without aliases.

    Raises:
        UsageError: the file is too large, too deep, or not a YAML mapping.
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
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:  # malformed YAML tags raise the last three
        raise UsageError(f"{file} is not valid {kind}: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{file} holds a {kind} mapping of names; got {type(content).__name__}")
    return content


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``, unchecked against a network.

    Raises:
        UsageError: the file is too large or not a tokenizer.
    """
    if file.stat().st_size > MAX_TOKENIZER_BYTES:
        raise UsageError(f"{file} is larger than {MAX_TOKENIZER_BYTES} bytes, which no tokenizer is")
    try:
        return Tokenizer.from_file(str(file))
    except BaseException as error:  # the Rust library raises Exception, and BaseException if it panics
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

    All settings in files are read by this function: ``config.json`` of a network, ``config.yaml`` of a run.

    Args:
        kind: the dataclass. Its fields are numbers, truth values, texts, choices, tuples of these, or such dataclasses.
        settings: values by field name.
        source: name of the settings in messages.
        base: values of missing fields; without it, only fields with a default may be missing.
        is_bounded: whether whole numbers must lie in [0, ``MAX_INT``] and numbers must be finite, as for sizes of a
            network.

    Raises:
        UsageError: a setting is unknown, missing or has the wrong type, or the dataclass refuses its value.
    """
    return _record(kind, settings, source, base, is_bounded, "")


def config_from(
    kind: type[Config], settings: Mapping[str, Any], weights: Mapping[str, Tensor], *, source: str
) -> Config:
    """As ``record_from``, for the settings of a network; sizes must be possible for the size of ``weights``.

    Raises:
        UsageError: a setting is unknown, missing, has the wrong type, or is too large for the weights.
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
    known = {field.name: field for field in fields(kind)}
    for name in settings:
        if name not in known:
            hint = suggestion(name, known) or f"; it has {', '.join(prefix + field for field in known)}"
            raise UsageError(f"{source} has no setting {reprlib.repr(prefix + name)}{hint}")
    values: dict[str, Any] = {} if base is None else {name: getattr(base, name) for name in known}
    for name, field in known.items():
        has_default = field.default is not MISSING or field.default_factory is not MISSING
        if name in settings:
            values[name] = _value(settings[name], hints[name], source, values.get(name), is_bounded, prefix + name)
        elif base is None and not has_default:
            raise UsageError(f"{source} lacks the setting {prefix}{name}")
    try:
        return kind(**values)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def _value(value: Any, hint: Any, source: str, base: Any, is_bounded: bool, name: str) -> Any:
    if is_dataclass(hint):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise UsageError(f"{name} in {source} is a mapping of settings; got {reprlib.repr(value)}")
        return _record(hint, value, source, base, is_bounded, f"{name}.")
    if isinstance(value, str) and EXPONENT.fullmatch(value) and not _fits(value, hint, is_bounded):
        value = float(value)
    if not _fits(value, hint, is_bounded):
        raise UsageError(f"{name} in {source} is {_type_name(hint, is_bounded)}; got {reprlib.repr(value)}")
    if get_origin(hint) is tuple:
        return tuple(value)
    return float(value) if type(value) is int and not _fits(value, hint, is_bounded, is_exact=True) else value


def _fits(value: Any, hint: Any, is_bounded: bool, *, is_exact: bool = False) -> bool:
    """Whether a plain value has the type ``hint``; an int also fits float, unless ``is_exact``."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option, is_bounded, is_exact=is_exact) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, get_args(hint)[0], is_bounded) for item in value)
    if hint is float:
        is_number = type(value) is float or (type(value) is int and abs(value) <= MAX_FLOAT and not is_exact)
        return is_number and (math.isfinite(value) if is_bounded else not math.isnan(value))
    if hint is int:
        return type(value) is int and (not is_bounded or 0 <= value <= MAX_INT)
    return type(value) is hint


def _type_name(hint: Any, is_bounded: bool) -> str:
    """The type ``hint`` in words."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(option, is_bounded) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a list, of which each is {_type_name(get_args(hint)[0], is_bounded)}"
    whole = f"a whole number in [0, {MAX_INT}]" if is_bounded else "a whole number"
    number = "a finite number" if is_bounded else "a number"
    return {int: whole, float: number, bool: "true or false", str: "a text", type(None): "null"}.get(hint, str(hint))
