"""The process of a student, from that of its teacher, and which settings it allows."""

from collections.abc import Callable, Mapping
from typing import Any

from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.score import ScoreAbsorbing
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.methods.didi_settings import DistillConfig
from didi.models.bundle import Bundle

_STUDENTS: Mapping[str, Callable[[Any], Process]] = {
    Absorbing.name: lambda process: process,
    Uniform.name: lambda process: process,
    ScoreAbsorbing.name: ScoreAbsorbing.normalised,
}
"""For each process of a teacher, that of its student."""


def student_process(teacher: Bundle) -> Process:
    """The process of a student, by which its teacher is read as well: one whose networks predict the clean token.

    The outputs of a SEDD network of masked diffusion, normalised, are such a prediction: its student is a masked model.

    Raises:
        UsageError: the outputs of the teacher are no distribution of the clean token.
    """
    name = teacher.process.name
    if name not in _STUDENTS:
        raise UsageError(
            f"DiDi-Instruct distils networks that predict the clean token, those of {', '.join(_STUDENTS)}; the "
            f"process of {teacher.name} is {name}, whose networks give ratios of probabilities: choose another teacher"
        )
    return _STUDENTS[name](teacher.process)


def check_objective(settings: DistillConfig, process: Process) -> None:
    """Refuse settings that are about masks where the process has none.

    Raises:
        UsageError: states of training are other than whole paths and their finished samples.
    """
    if process.mask_id is not None:
        return
    required = {
        "objective.trajectory": (settings.objective.trajectory, "whole-path"),
        "objective.reward_time": (settings.objective.reward_time, "finished"),
        "discriminator.guidance_steps": (settings.discriminator.guidance_steps, 0),
    }
    for name, (found, needed) in required.items():
        if found != needed:
            raise UsageError(
                f"{name} is {needed} for a teacher of {process.name} diffusion, which has no [MASK]; got {found}: set "
                f"it to {needed}, or distil a masked teacher"
            )
