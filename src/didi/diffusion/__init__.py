"""Diffusion processes as mathematics: schedules, kernels, posteriors, bounds, exact draws. Imports torch only.

``PROCESSES`` finds a process by its name; a new one is one file beside these and one line here.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.process import Process
from didi.diffusion.schedule import schedule_from_name
from didi.diffusion.score import ScoreAbsorbing, ScoreUniform
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError

PROCESSES: dict[str, type[Any]] = {one.name: one for one in (Absorbing, Uniform, ScoreAbsorbing, ScoreUniform)}


def find_process(name: str) -> type[Any]:
    """The class, a ``Process``, called ``name``.

    Raises:
        UsageError: no process has that name.
    """
    if name not in PROCESSES:
        raise UsageError(f"a process is one of {', '.join(PROCESSES)}; got {name!r}")
    return PROCESSES[name]


def process_settings(process: Process) -> dict[str, Any]:
    """Name and settings of a process as plain values, for a manifest."""
    values = {one.name: getattr(process, one.name) for one in fields(cast(Any, process))}
    return {"name": process.name} | values | {"schedule": process.schedule.name}


def process_from_settings(settings: Mapping[str, Any]) -> Process:
    """The process that ``process_settings`` described.

    Raises:
        UsageError: the name is unknown, or the settings are not those of that process.
    """
    values = dict(settings)
    kind = find_process(str(values.pop("name", None)))
    names = [one.name for one in fields(kind)]
    whole = [name for name in names if name != "schedule"]
    is_typed = all(type(values.get(name)) is int and values[name] >= 0 for name in whole)
    if set(values) != set(names) or not is_typed or not isinstance(values["schedule"], str):
        raise UsageError(
            f"settings of the {kind.name} process are {', '.join(whole)} (whole numbers) and schedule (a name); "
            f"got {', '.join(f'{name} {value!r}'[:80] for name, value in values.items())}"
        )
    process: Process = kind(**values | {"schedule": schedule_from_name(values["schedule"])})
    return process
