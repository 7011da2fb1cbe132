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
"""Maps the process of a teacher to that of its student, by the name of the teacher's process."""

MASKED = (Absorbing.name,)
"""The processes of methods that support masked students only."""


def student_process(teacher: Bundle, method: str, processes: tuple[str, ...]) -> Process:
    """The process of a student, which is also used for the teacher; its networks predict the clean token.

    The normalised outputs of a SEDD-absorb network predict the clean token, so that its student is a masked model.

    Args:
        teacher: bundle of the teacher.
        method: name of the method.
        processes: names of the processes that the method supports for students.

    Raises:
        UsageError: the teacher's outputs are not a distribution of the clean token, or the method does not support the
            process.
    """
    name = teacher.process.name
    if name not in _STUDENTS:
        raise UsageError(
            f"a distillation needs a teacher that predicts the clean token, of process {', '.join(_STUDENTS)}; the "
            f"process of {teacher.name} is {name}, whose networks give ratios of probabilities: choose another teacher"
        )
    process = _STUDENTS[name](teacher.process)
    if process.name not in processes:
        raise UsageError(
            f"method {method} distils teachers of {' and '.join(processes)} diffusion; the process of {teacher.name} "
            f"is {name}: choose another teacher or another method"
        )
    return process
