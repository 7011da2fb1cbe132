"""The rows that an evaluation is going to have; what cannot be sampled is refused before anything is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle, Role
from didi.sampling.options import OWN_SETTINGS, SamplerName, SamplingOptions
from didi.sampling.registry import find_sampler, is_self_paced, make_sampler, with_read_options

PlannedRow = tuple[str, SamplingOptions, int]


def departures(options: SamplingOptions, temperature: Sequence[float], top_p: Sequence[float]) -> list[SamplingOptions]:
    """``options`` at each temperature and at each top-p, each once; as they are where there is none."""
    swept = [replace(options, temperature=value) for value in temperature]
    swept += [replace(options, top_p=value) for value in top_p]
    return list(dict.fromkeys(swept or [options]))


def plan_rows(
    bundle: Bundle,
    role: Role | Sequence[Role] | None,
    sampler: SamplerName | Sequence[SamplerName],
    nfe: Sequence[int],
    each: Sequence[SamplingOptions],
) -> list[PlannedRow]:
    """Label, settings and number of moves of every row to come.

    Args:
        bundle: its networks are sampled.
        role: one or several, None for the default.
        sampler: one or several.
        nfe: numbers of moves; none for no rows.
        each: further options, each of which gives rows of its own.

    Raises:
        UsageError: a row cannot be sampled.
    """
    roles: Sequence[Role | None] = [role] if role is None or isinstance(role, str) else role
    samplers = [sampler] if isinstance(sampler, str) else sampler
    return [row for one in each if nfe for row in _plan(bundle, roles, samplers, nfe, one)]


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
    _refuse_unread(samplers, options, bundle.process.name)
    for role in roles:
        network = bundle.network(role)
        label: str = role or next(name for name in get_args(Role) if getattr(bundle, name) is network)
        for sampler in only if isinstance(network, AutoregressiveLM) else samplers:
            settings = with_read_options(replace(options, role=role, sampler=sampler), bundle)
            if is_self_paced(network, sampler):
                numbers: Sequence[int] = [network.length]
            else:
                numbers = [len(options.times) - 1] if options.times else nfe
            for moves in numbers:
                make_sampler(bundle, settings, moves)
                plan.append((label, settings, moves))
    return plan


def _refuse_unread(samplers: Sequence[SamplerName], options: SamplingOptions, process: str) -> None:
    """Refuse a setting that none of the samplers reads."""
    reads = set().union(*(find_sampler(sampler, process).reads for sampler in samplers))
    for name in OWN_SETTINGS:
        if getattr(options, name) is not None and name not in reads:
            raise UsageError(f"none of {', '.join(samplers)} reads {name}; leave it out or add its sampler")
