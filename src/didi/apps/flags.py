"""What flags accept and how ``--help`` shows them: rules for the parser, which is tyro."""

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
    """Rules for optional values; a context manager under which tyro uses them.

    Help shows the type alone, ``STR`` and not ``{None}|STR``, and ``(default: unset)`` for None.

    Args:
        reads_none: the word ``None`` is None, for settings that a recipe has given a value. Otherwise it is a text as
            any other.
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
    """The rule of a type, for that type or None."""

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
    """``args`` with ``--flag -value`` as ``--flag=-value`` where the value has not the shape of a flag or a number.

    Parsers take any word that begins with a dash for a flag; didi has no flags of one dash but ``-h``.
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
