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
    """Check a whole number and return it as an ``int``.

    Args:
        name: name of the argument, for the message.
        value: an integer of Python or NumPy, or an integer tensor with one element; not a float, bool or text.
        low: smallest allowed value.
        high: largest allowed value.

    Raises:
        UsageError: the value is not a whole number, or out of range.
    """
    rule = f"{name} is a whole number"
    if isinstance(value, bool):
        _refuse(rule, value)
    try:
        number = operator.index(value)
    except TypeError:
        _refuse(rule, value)
    if (low is not None and number < low) or (high is not None and number > high):
        _refuse(f"{name} {_range(low, high)}", number)
    return number


def finite_number(
    name: str, value: Any, *, low: Number = None, high: Number = None, is_low_open: bool = False
) -> float:
    """Check a finite number and return it as a ``float``.

    Args:
        name: name of the argument, for the message.
        value: a number of Python or NumPy, or a tensor with one element; not a bool or text.
        low: smallest allowed value.
        high: largest allowed value.
        is_low_open: whether ``low`` itself is excluded.

    Raises:
        UsageError: the value is not a finite number, or out of range.
    """
    rule = f"{name} is a finite number"
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        _refuse(rule, value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor with several elements
        _refuse(rule, value)
    is_low = low is not None and (number <= low if is_low_open else number < low)
    if not math.isfinite(number) and high is None:
        _refuse(rule if low is None else f"{rule} and {_range(low, high, is_low_open=is_low_open)}", number)
    if not math.isfinite(number) or is_low or (high is not None and number > high):
        _refuse(f"{name} {_range(low, high, is_low_open=is_low_open)}", number)
    return number


def one_of(name: str, value: Any, choices: Sequence[Choice]) -> Choice:
    """Check that ``value`` is one of ``choices``, with equal type, and return it.

    Raises:
        UsageError: the value is not one of the choices.
    """
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    nearest = suggestion(value, map(str, choices)) if isinstance(value, str) else ""
    raise UsageError(f"{name} is one of {', '.join(map(str, choices))}; got {reprlib.repr(value)}{nearest}")


def instance(name: str, value: Any, kind: type[Choice]) -> Choice:
    """Check that ``value`` is an instance of ``kind``, and return it.

    Raises:
        UsageError: the value has another type.
    """
    if not isinstance(value, kind):
        _refuse(f"{name} is a {kind.__name__}", value)
    return value


def listed(name: str, value: Any, *, allows_none: bool = False) -> tuple[Any, ...]:
    """The elements of a list, a generator or an array; a single value, such as a number or a text, becomes one element.

    Args:
        name: name of the argument, for the message.
        value: a list, a generator, an array or a single value.
        allows_none: whether there may be no elements.

    Raises:
        UsageError: there are no elements.
    """
    is_single = isinstance(value, str | bytes) or getattr(value, "ndim", None) == 0  # an array without axes
    elements = tuple(value) if isinstance(value, Iterable) and not is_single else (value,)
    if not elements and not allows_none:
        raise UsageError(f"{name} is one value or more; got none: give one, or leave {name} out")
    return elements


def set_fields(record: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass, for its ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(record, name, value)


def _range(low: Number, high: Number, *, is_low_open: bool = False) -> str:
    if high is None:
        return f"is above {low}" if is_low_open else f"is {low} or more"
    return f"lies in {'(' if is_low_open else '['}{low}, {high}]"


def _refuse(rule: str, value: object) -> NoReturn:
    raise UsageError(f"{rule}; got {reprlib.repr(value)}")
