"""Reading files that nobody vouches for: bounded size and depth, no aliases, settings of the right kind."""

import json
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from tokenizers import Tokenizer
from torch import Tensor

from didi.errors import UsageError

MAX_SETTINGS_BYTES = 2**24
MAX_TOKENIZER_BYTES = 2**27  # the largest known is 34 MB
MAX_INT = 2**31 - 1
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


def config_from(
    kind: type[Config], settings: Mapping[str, Any], weights: Mapping[str, Tensor], *, source: str
) -> Config:
    """A network's settings, checked field by field and against the size of its weights, before anything is built.

    Raises:
        UsageError: a setting is unknown, missing, of another kind, or larger than the weights can bear.
    """
    hints = typing.get_type_hints(kind)
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            raise UsageError(f"{source} has no setting {reprlib.repr(name)}; it has {', '.join(known)}")
    for name, one in known.items():
        if name not in settings and one.default is MISSING:
            raise UsageError(f"{source} lacks the setting {name}")
        if name in settings and not _fits(settings[name], hints[name]):
            raise UsageError(f"{name} in {source} is {_told(hints[name])}; got {reprlib.repr(settings[name])}")
    config = kind(**settings)
    num_elements = sum(value.numel() for value in weights.values())
    shape = vars(config)
    largest = max(shape.get(name, 0) or 0 for name in ("vocab_size", "hidden_size", "cond_dim"))
    if shape.get("num_blocks", 0) > len(weights) or largest * shape.get("hidden_size", 0) > num_elements:
        raise UsageError(
            f"{source} tells of {shape.get('num_blocks')} blocks of width {shape.get('hidden_size')}, too large for "
            f"the {num_elements:,} numbers of its weights"
        )
    return config


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint is int:
        return type(value) is int and 0 <= value <= MAX_INT
    return type(value) is hint


def _told(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return {int: f"a whole number in [0, {MAX_INT}]", float: "a finite number", bool: "true or false"}.get(
        hint, str(hint)
    )
