"""The mathematics of diffusion processes: schedules, kernels, posteriors, bounds, exact draws. Imports torch only.

``PROCESSES`` maps names to process classes. A new process takes one file in this package and one entry there.
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

PROCESSES: dict[str, type[Any]] = {
    process.name: process for process in (Absorbing, Uniform, ScoreAbsorbing, ScoreUniform)
}


def find_process(name: str) -> type[Any]:
    """The class of the process called ``name``.

    Raises:
        UsageError: no process has that name.
    """
    if name not in PROCESSES:
        raise UsageError(f"a process is one of {', '.join(PROCESSES)}; got {name!r}")
    return PROCESSES[name]


def process_settings(process: Process) -> dict[str, Any]:
    """Name and settings of a process as plain values, for a manifest."""
    values = {setting.name: getattr(process, setting.name) for setting in fields(cast(Any, process))}
    return {"name": process.name} | values | {"schedule": process.schedule.name}


def process_from_settings(settings: Mapping[str, Any]) -> Process:
    """The process whose ``process_settings`` are given.

    Raises:
        UsageError: the name is unknown, or the settings do not belong to that process.
    """
    values = dict(settings)
    kind = find_process(str(values.pop("name", None)))
    names = [setting.name for setting in fields(kind)]
    integers = [name for name in names if name != "schedule"]
    are_integers = all(type(values.get(name)) is int and values[name] >= 0 for name in integers)
    if set(values) != set(names) or not are_integers or not isinstance(values["schedule"], str):
        raise UsageError(
            f"settings of the {kind.name} process are {', '.join(integers)} (whole numbers) and schedule (a name); got "
            f"{', '.join(f'{name} {value!r}'[:80] for name, value in values.items())}"
        )
    process: Process = kind(**values | {"schedule": schedule_from_name(values["schedule"])})
    return process
