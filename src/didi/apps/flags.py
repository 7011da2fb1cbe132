"""Rules for the parser, tyro: how values of flags are read, and how ``--help`` shows them."""

import dataclasses
import re
from types import NoneType
from typing import Any, Union, get_args

from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

Spec = PrimitiveConstructorSpec | UnsupportedTypeAnnotationError
FLAG = re.compile(r"--[a-z][\w.-]*")
NUMBER = re.compile(r"-[\d.][\d.eE+-]*|-inf|-nan")
UNSET = "unset"


def parsing_rules(*, reads_none: bool) -> ConstructorRegistry:
    """Rules for optional values, as a context manager under which tyro uses them.

    Help shows only the type, ``STR`` instead of ``{None}|STR``, and ``(default: unset)`` for None.

    Args:
        reads_none: whether the word ``None`` is read as None, so that a value of a recipe can be unset; otherwise it is
            read as text.
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

    return registry


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
