"""Checks of the ``config.json`` of public checkpoints, which the readers of their layouts share."""

from collections.abc import Mapping
from typing import Any

from didi.errors import UsageError


def check_required(settings: Mapping[str, Any], required: Mapping[str, Any], *, source: str) -> None:
    """Refuse a setting with another value than the only supported one; it may be missing, or null if this is False.

    Args:
        settings: ``config.json``.
        required: the only supported values by name.
        source: name of the checkpoint in messages, with an article.

    Raises:
        UsageError: a setting has another value.
    """
    for name, value in required.items():
        given = settings.get(name, value)
        is_equal = given == value and isinstance(given, bool) == isinstance(value, bool)  # 0 is not False
        if not is_equal and not (given is None and value is False):
            raise UsageError(
                f"{source} has {name} {value} in config.json; got {given!r:.80}: other values are not supported"
            )


def check_sizes(settings: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Refuse a size that contradicts the weights; it may be missing.

    Args:
        settings: ``config.json``.
        sizes: sizes of the weights by name of the setting.

    Raises:
        UsageError: a size differs.
    """
    for name, size in sizes.items():
        if (given := settings.get(name, size)) != size:
            raise UsageError(f"{name} in config.json is a size of the weights, {size}; got {given!r:.80}")


def epsilon_of(settings: Mapping[str, Any], name: str, default: float) -> float:
    """Epsilon of layer normalisation, in (0, 1).

    Args:
        settings: ``config.json``.
        name: name of the setting.
        default: value of a missing setting.

    Raises:
        UsageError: it is not a number in (0, 1).
    """
    epsilon = settings.get(name, default)
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        raise UsageError(f"{name} in config.json is a number between 0 and 1; got {epsilon!r:.80}")
    return float(epsilon)
