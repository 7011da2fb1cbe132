"""The rows that an evaluation is going to have; what cannot be sampled is refused before anything is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from didi.arguments import listed
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle, Role
from didi.sampling.options import SETTINGS, SamplerName, SamplingOptions
from didi.sampling.registry import (
    find_sampler,
    make_sampler,
    moves_without_grid,
    sampler_of,
    with_bundle_settings,
    with_read_options,
)

PlannedRow = tuple[str, SamplingOptions, int]


def departures(options: SamplingOptions, temperature: Sequence[float], top_p: Sequence[float]) -> list[SamplingOptions]:
    """``options`` at each temperature and at each top-p, each once; as they are where there is none.

    Raises:
        UsageError: a value is out of range, or no set of options would have that of ``options``.
    """
    temperature, top_p = (listed("sweep", values, allows_none=True) for values in (temperature, top_p))
    for name, sweep, other in (("temperature", temperature, top_p), ("top_p", top_p, temperature)):
        if sweep and not other and getattr(options, name) != 1:
            raise UsageError(f"give {name} or options.{name}, not both")
    swept = [replace(options, temperature=value) for value in temperature]
    swept += [replace(options, top_p=value) for value in top_p]
    return list(dict.fromkeys(swept or [options]))


def plan_rows(
    bundle: Bundle,
    role: Role | Sequence[Role] | None,
    sampler: SamplerName | Sequence[SamplerName] | None,
    nfe: Sequence[int],
    each: Sequence[SamplingOptions],
) -> list[PlannedRow]:
    """Label, settings and number of moves of every row to come, each once.

    Args:
        bundle: its networks are sampled.
        role: one or several; None for that of the options.
        sampler: one or several; None for that of the options.
        nfe: numbers of moves; none for no rows.
        each: further options, each of which gives rows of its own.

    Raises:
        UsageError: a row cannot be sampled, or its role or sampler is given twice.
    """
    rows: list[PlannedRow] = []
    roles = None if role is None else listed("role", role)
    samplers = None if sampler is None else listed("sampler", sampler)
    for one in each if nfe else ():
        given = {"role": (roles, one.role, None), "sampler": (samplers, one.sampler, SamplingOptions.sampler)}
        for name, (asked, of_options, default) in given.items():
            if asked is not None and of_options != default:
                raise UsageError(f"give {name} or options.{name}, not both")
        rows += _plan(bundle, roles or (one.role,), samplers or (one.sampler,), nfe, one)
    return list(dict.fromkeys(rows))  # ``default`` beside the sampler that it stands for


def _plan(
    bundle: Bundle,
    roles: Sequence[Role | None],
    samplers: Sequence[SamplerName],
    nfe: Sequence[int],
    options: SamplingOptions,
) -> list[PlannedRow]:
    """The rows of one set of options."""
    plan: list[PlannedRow] = []
    only: Sequence[SamplerName] = ("ancestral",)
    _refuse_unread(bundle, roles, samplers, options)
    for role in roles:
        network = bundle.network(role)
        label: str = role or next(name for name in get_args(Role) if getattr(bundle, name) is network)
        for sampler in only if isinstance(network, AutoregressiveLM) else samplers:
            settings = with_read_options(replace(options, role=role, sampler=sampler), bundle)
            settings = with_bundle_settings(settings, bundle)
            numbers: Sequence[int] = [len(options.times) - 1] if options.times else nfe
            if (fixed := moves_without_grid(network, settings.sampler, network.length)) is not None:
                numbers = [fixed]
            for moves in numbers:
                make_sampler(bundle, settings, moves)
                plan.append((label, settings, moves))
    return plan


def _refuse_unread(
    bundle: Bundle, roles: Sequence[Role | None], samplers: Sequence[SamplerName], options: SamplingOptions
) -> None:
    """Refuse a setting that none of the samplers reads; that of an autoregressive network reads none."""
    diffusion = [role for role in roles if not isinstance(bundle.network(role), AutoregressiveLM)]
    each = [replace(options, role=role, sampler=sampler) for role in diffusion for sampler in samplers]
    names = list(dict.fromkeys(sampler_of(bundle, one) for one in each))
    reads = set().union(*(find_sampler(name, bundle.process.name).reads for name in names))
    for name in SETTINGS:
        if getattr(options, name) != getattr(SamplingOptions, name) and name not in reads:
            readers = ", ".join(names) or "left-to-right sampling"
            raise UsageError(f"none of {readers} reads {name}; leave it out or add its sampler")
