"""Plan of the rows of an evaluation; a row that cannot be sampled is refused before the first sampling."""

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
"""Label, sampling options and number of moves of a row."""


def swept_options(
    options: SamplingOptions, temperature: Sequence[float], top_p: Sequence[float]
) -> list[SamplingOptions]:
    """``options`` with each temperature and with each top-p of two sweeps, without duplicates.

    Returns:
        One set of options for each value; ``options`` alone without sweeps.

    Raises:
        UsageError: a value is out of range, or no row would use a value of ``options`` because a sweep replaces it.
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
    options: Sequence[SamplingOptions],
) -> list[PlannedRow]:
    """Label, settings and number of moves of every row, without duplicates.

    Args:
        bundle: the model.
        role: one role or several; None for the role of ``options``.
        sampler: one sampler or several; None for the sampler of ``options``.
        nfe: numbers of moves; there are no rows if it is empty.
        options: sampling options; each gives rows for all roles, samplers and numbers of moves.

    Raises:
        UsageError: a row cannot be sampled, or its role or sampler is set both by an argument and by ``options``.
    """
    rows: list[PlannedRow] = []
    roles = None if role is None else listed("role", role)
    samplers = None if sampler is None else listed("sampler", sampler)
    for each in options if nfe else ():
        sources = {"role": (roles, each.role, None), "sampler": (samplers, each.sampler, SamplingOptions.sampler)}
        for name, (argument, of_options, default) in sources.items():
            if argument is not None and of_options != default:
                raise UsageError(f"give {name} or options.{name}, not both")
        rows += _plan(bundle, roles or (each.role,), samplers or (each.sampler,), nfe, each)
    return list(dict.fromkeys(rows))  # duplicates arise from ``default`` beside the sampler that it stands for


def _plan(
    bundle: Bundle,
    roles: Sequence[Role | None],
    samplers: Sequence[SamplerName],
    nfe: Sequence[int],
    options: SamplingOptions,
) -> list[PlannedRow]:
    """The rows of one set of options."""
    plan: list[PlannedRow] = []
    left_to_right: Sequence[SamplerName] = ("ancestral",)  # the only sampler of an autoregressive network
    _refuse_unread(bundle, roles, samplers, options)
    for role in roles:
        network = bundle.network(role)
        label: str = role or next(name for name in get_args(Role) if getattr(bundle, name) is network)
        for sampler in left_to_right if isinstance(network, AutoregressiveLM) else samplers:
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
    """Refuse a setting that none of the samplers reads; sampling of an autoregressive network reads no setting."""
    diffusion = [role for role in roles if not isinstance(bundle.network(role), AutoregressiveLM)]
    combinations = [replace(options, role=role, sampler=sampler) for role in diffusion for sampler in samplers]
    names = list(dict.fromkeys(sampler_of(bundle, each) for each in combinations))
    reads = set().union(*(find_sampler(name, bundle.process.name).reads for name in names))
    for name in SETTINGS:
        if getattr(options, name) != getattr(SamplingOptions, name) and name not in reads:
            problem = f"none of {', '.join(names)} reads" if names else "left-to-right sampling does not read"
            raise UsageError(f"{problem} {name}; leave it out, or add a sampler that reads it")
