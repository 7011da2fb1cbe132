"""Rules for the parser, tyro: how values of flags are read, and how ``--help`` shows them."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from types import NoneType
from typing import Any, Union, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
    UnsupportedTypeAnnotationError,
)

from didi.apps.terminal import NO_VALUES

Spec = PrimitiveConstructorSpec | UnsupportedTypeAnnotationError
FLAG = re.compile(r"--[a-z][\w.-]*")
NUMBER = re.compile(r"-[\d.][\d.eE+-]*|-inf|-nan")
UNSET = "unset"
LINE_BREAK = re.compile(r"(?<!\n)\n(?!\n) *")
"""A single line break and the indentation after it, but not the empty line between paragraphs."""


def parsing_rules(*, reads_none: bool) -> ConstructorRegistry:
    """Rules for optional values and for help, as a context manager under which tyro uses them.

    Help shows only the type, ``STR`` instead of ``{None}|STR``, and ``(default: unset)`` for None and no values. The
    help of a flag has no line breaks of the source.

    Args:
        reads_none: whether the word ``None`` is read as None, and a flag for several values without any as no values,
            so that a value of a recipe can be unset; otherwise the word is read as text, and such a flag is refused.
    """
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def optional(info: PrimitiveTypeInfo) -> Spec | None:
        arms: tuple[Any, ...] = get_args(info.type)
        if NoneType not in arms or len(arms) < 2:
            return None
        inner: Any = Union[tuple(arm for arm in arms if arm is not NoneType)]  # noqa: UP007 - of a computed tuple
        spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(inner, info.markers))
        return _optional(spec, reads_none=reads_none) if isinstance(spec, PrimitiveConstructorSpec) else spec

    active: set[str] = set()  # rules that ask the parser for its own spec, and are then called once more

    @registry.primitive_rule
    def several(info: PrimitiveTypeInfo) -> Spec | None:
        if "several" in active or get_origin(info.type) is not tuple:
            return None
        with _added(active, "several"):
            spec = ConstructorRegistry.get_primitive_spec(info)
        takes_none = reads_none or tyro.conf.Positional in info.markers
        return _several(spec, takes_none=takes_none) if isinstance(spec, PrimitiveConstructorSpec) else spec

    @registry.struct_rule
    def unwrapped(info: StructTypeInfo) -> StructConstructorSpec | None:
        if "unwrapped" in active:
            return None
        with _added(active, "unwrapped"):
            spec = ConstructorRegistry.get_struct_spec(info)
        return _with_unwrapped_help(spec) if isinstance(spec, StructConstructorSpec) else None

    return registry


@contextlib.contextmanager
def _added(names: set[str], name: str) -> Iterator[None]:
    """Context in which ``names`` has ``name``."""
    names.add(name)
    try:
        yield
    finally:
        names.remove(name)


def _several(spec: PrimitiveConstructorSpec[Any], *, takes_none: bool) -> PrimitiveConstructorSpec[Any]:
    """The rule for a tuple, from the parser's own; help shows an empty tuple as unset."""

    def read(words: list[str]) -> Any:
        if not words and not takes_none:
            raise ValueError(NO_VALUES)
        return spec.instance_from_str(words)

    return dataclasses.replace(
        spec,
        instance_from_str=read,
        str_from_instance=lambda value: spec.str_from_instance(value) or [UNSET],
    )


def _with_unwrapped_help(spec: StructConstructorSpec) -> StructConstructorSpec:
    """The spec of a dataclass without the line breaks that the help of a field has in the source.

    The parser removes them from lines without indentation only; it wraps lines at the width of the terminal.
    """

    def unwrapped(text: str | None) -> str | None:
        return text and LINE_BREAK.sub(" ", text)

    def shown(field: StructFieldSpec) -> StructFieldSpec:
        text = field.helptext  # a function, which parses the source, is only called if help is shown
        return dataclasses.replace(field, helptext=(lambda: unwrapped(text())) if callable(text) else unwrapped(text))

    return dataclasses.replace(spec, fields=tuple(map(shown, spec.fields)))


def _optional(spec: PrimitiveConstructorSpec[Any], *, reads_none: bool) -> PrimitiveConstructorSpec[Any]:
    """The rule for an optional value, from the rule of its type."""

    def read(words: list[str]) -> Any:
        return None if reads_none and words == ["None"] else spec.instance_from_str(words)

    def shown(value: Any) -> list[str]:
        return [UNSET] if value is None else spec.str_from_instance(value)

    return dataclasses.replace(
        spec,
        instance_from_str=read,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=shown,
        choices=(*spec.choices, "None") if spec.choices is not None and reads_none else spec.choices,
    )


def with_dashed_values(args: list[str]) -> list[str]:
    """``args`` with ``--flag -value`` joined to ``--flag=-value`` if the value looks neither like a flag nor a number.

    The parser reads any word that begins with a dash as a flag; the only flag of didi with one dash is ``-h``.
    """
    joined: list[str] = []
    for word in args:
        is_value = word.startswith("-") and word not in ("-", "-h")
        is_value &= not FLAG.fullmatch(word.split("=")[0]) and not NUMBER.fullmatch(word)
        if is_value and joined and FLAG.fullmatch(joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined
