"""Sampling options from the flags that several commands share."""

from dataclasses import fields
from typing import Any

from didi.sampling.generate import SamplingOptions


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
    return SamplingOptions(**{name: getattr(command, name) for name in shared}, **others)
