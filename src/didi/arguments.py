"""Checks of arguments: whole numbers, finite numbers, choices and lists, each refused in one line."""

import math
import operator
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TypeVar

from didi.errors import UsageError, suggestion

Choice = TypeVar("Choice")
Number = float | int | None


def whole_number(name: str, value: Any, *, low: int | None = None, high: int | None = None) -> int:
    """``value`` as an ``int``: of Python, NumPy or a tensor with one element; no float, truth value or text.

    Args:
        name: of the argument, for the message.
        value: as given.
        low: least value that is allowed.
        high: largest value that is allowed.

    Raises:
        UsageError: it is no whole number, or out of range.
    """
    rule = f"{name} is a whole number"
    if isinstance(value, bool):
        _refuse(rule, value)
    try:
        found = operator.index(value)
    except TypeError:
        _refuse(rule, value)
    if (low is not None and found < low) or (high is not None and found > high):
        _refuse(f"{name} {_range(low, high)}", found)
    return found


def finite_number(
    name: str, value: Any, *, low: Number = None, high: Number = None, is_low_open: bool = False
) -> float:
    """``value`` as a ``float``: a number of Python or NumPy that is neither NaN nor infinite; no truth value or text.

    Args:
        name: of the argument, for the message.
        value: as given.
        low: least value that is allowed.
        high: largest value that is allowed.
        is_low_open: whether ``low`` itself is not allowed.

    Raises:
        UsageError: it is no finite number, or out of range.
    """
    rule = f"{name} is a finite number"
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        _refuse(rule, value)
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of a tensor with several elements
        _refuse(rule, value)
    is_low = low is not None and (found <= low if is_low_open else found < low)
    if not math.isfinite(found) or is_low or (high is not None and found > high):
        _refuse(rule if low is None else f"{name} {_range(low, high, is_low_open=is_low_open)}", found)
    return found


def one_of(name: str, value: Any, choices: Sequence[Choice]) -> Choice:
    """``value`` if it is one of ``choices``.

    Raises:
        UsageError: it is not.
    """
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    nearest = suggestion(value, map(str, choices)) if isinstance(value, str) else ""
    raise UsageError(f"{name} is one of {', '.join(map(str, choices))}; got {reprlib.repr(value)}{nearest}")


def instance(name: str, value: Any, kind: type[Choice]) -> Choice:
    """``value`` if it is a ``kind``.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(value, kind):
        _refuse(f"{name} is a {kind.__name__}", value)
    return value


def listed(name: str, value: Any, *, allows_none: bool = False) -> tuple[Any, ...]:
    """The elements of a list, a generator or an array; a single value, such as a number or a text, is a list of one.

    Args:
        name: of the argument, for the message.
        value: as given.
        allows_none: whether an empty list is allowed.

    Raises:
        UsageError: it is empty.
    """
    is_single = isinstance(value, str | bytes) or getattr(value, "ndim", None) == 0  # an array without axes
    found = tuple(value) if isinstance(value, Iterable) and not is_single else (value,)
    if not found and not allows_none:
        raise UsageError(f"{name} is one value or more; got none: leave {name} out for its default")
    return found


def set_fields(record: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass, from its ``__post_init__``: values as they were checked."""
    for name, value in values.items():
        object.__setattr__(record, name, value)


def _range(low: Number, high: Number, *, is_low_open: bool = False) -> str:
    if high is None:
        return f"is above {low}" if is_low_open else f"is {low} or more"
    return f"lies in {'(' if is_low_open else '['}{low}, {high}]"


def _refuse(rule: str, value: object) -> NoReturn:
    raise UsageError(f"{rule}; got {reprlib.repr(value)}")
