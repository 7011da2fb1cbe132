"""Sampling options from the flags that several commands share."""

from dataclasses import field, fields, make_dataclass, replace
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from didi.models.bundle import Bundle
from didi.models.guidance import Guidance
from didi.models.initial_state import InitialState
from didi.sampling.options import KINDS, SamplingOptions

Settings = TypeVar("Settings")


def optional(kind: type[Any]) -> Any:
    """A dataclass of flags with the fields of ``kind``; a flag that is not given is None."""
    hints = get_type_hints(kind)
    flags = [
        (
            each.name,
            Annotated[hints[each.name] | None, tyro.conf.arg(help_behavior_hint=f"(default: {each.default})")],
            field(default=None),
        )
        for each in fields(kind)
    ]
    flag_type = make_dataclass(f"{kind.__name__}Flags", flags, frozen=True)
    flag_type.__doc__ = kind.__doc__
    return flag_type


GuidanceFlags, OrderFlags, RemaskingFlags, InitialStateFlags, ReparamFlags = (
    optional(KINDS[name]) for name in ("guidance", "order", "remask", "initial_state", "reparam")
)


def settings_from_flags(flags: Any, base: Settings) -> Settings | None:
    """``base`` with the values of the flags that were given; None if no flag was given.

    Raises:
        UsageError: a value is out of range.
    """
    values = {name: value for name, value in vars(flags).items() if value is not None}
    return replace(base, **values) if values else None  # type: ignore[type-var]


def guidance_from_flags(flags: Any, bundle: Bundle) -> Guidance | None:
    """The bundle's guidance (or the default) with the settings given as flags; None if no flag was given."""
    return settings_from_flags(flags, bundle.guidance or Guidance())


def sampling_options(command: Any, bundle: Bundle, **others: Any) -> SamplingOptions:
    """Sampling options from a parsed command.

    Args:
        command: a dataclass of flags that has the fields of ``SamplingOptions``, except ``sampler``, ``role``,
            ``is_whole_batch`` and those in ``others``.
        bundle: the model, for the defaults of guidance and of the initial state.
        others: fields of ``SamplingOptions`` that are not read from ``command``.

    Raises:
        UsageError: a value is out of range.
    """
    shared = {each.name for each in fields(SamplingOptions)} - {"sampler", "role", "is_whole_batch", *others}
    values = {name: getattr(command, name) for name in shared}
    values |= {name: settings_from_flags(values[name], kind()) for name, kind in KINDS.items()}
    values["guidance"] = guidance_from_flags(command.guidance, bundle)
    values["initial_state"] = settings_from_flags(command.initial_state, bundle.initial_state or InitialState())
    return SamplingOptions(**values, **others)
