"""Sampling options from the flags that several commands share."""

from dataclasses import MISSING, fields
from typing import Any, cast

from didi.sampling.options import OWN_SETTINGS, SamplingOptions


def sampling_options(command: object, **others: Any) -> SamplingOptions:
    """Sampling options from a parsed command.

    Args:
        command: a dataclass of flags that has the fields of ``SamplingOptions``, except ``sampler``, ``role``,
            ``is_whole_batch`` and those in ``others``.
        others: fields of ``SamplingOptions`` that are not read from ``command``.

    Raises:
        UsageError: a value is out of range.
    """
    shared = {one.name for one in fields(SamplingOptions)} - {"sampler", "role", "is_whole_batch", *others}
    values = {name: getattr(command, name) for name in shared}
    # A sampler's own settings at their defaults are not given, so that other samplers do not refuse them.
    given = {name: None for name in OWN_SETTINGS if values.get(name) == _default(command, name)}
    return SamplingOptions(**values | given, **others)


def _default(command: object, name: str) -> object:
    """Default of a field of a dataclass."""
    (found,) = [one for one in fields(cast(Any, command)) if one.name == name]
    return found.default_factory() if found.default is MISSING and callable(found.default_factory) else found.default
