"""The process of a student, from that of its teacher."""

from collections.abc import Callable, Mapping
from typing import Any

from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.score import ScoreAbsorbing
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.models.bundle import Bundle

_STUDENTS: Mapping[str, Callable[[Any], Process]] = {
    Absorbing.name: lambda process: process,
    Uniform.name: lambda process: process,
    ScoreAbsorbing.name: ScoreAbsorbing.normalised,
}
"""For each process of a teacher, that of its student."""

MASKED = (Absorbing.name,)
"""Processes of students that write masked tokens."""


def student_process(teacher: Bundle, method: str, processes: tuple[str, ...]) -> Process:
    """The process of a student, by which its teacher is read as well: one whose networks predict the clean token.

    The outputs of a SEDD network of masked diffusion, normalised, are such a prediction: its student is a masked model.

    Args:
        teacher: what is distilled.
        method: name of the method.
        processes: names of the processes of its students.

    Raises:
        UsageError: the outputs of the teacher are no distribution of the clean token, or the method has no students of
            its process.
    """
    name = teacher.process.name
    if name not in _STUDENTS:
        raise UsageError(
            f"a distillation is of networks that predict the clean token, those of {', '.join(_STUDENTS)}; the "
            f"process of {teacher.name} is {name}, whose networks give ratios of probabilities: choose another teacher"
        )
    process = _STUDENTS[name](teacher.process)
    if process.name not in processes:
        raise UsageError(
            f"method {method} distils teachers of {' and '.join(processes)} diffusion; the process of {teacher.name} "
            f"is {name}: choose another teacher or another method"
        )
    return process
