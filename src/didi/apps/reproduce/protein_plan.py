"""Which sets of proteins Figures 5, 6 and 7 need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from didi.apps.reproduce.protein_cells import ControlCell, SampleCell
from didi.evaluation.protein.controls import CONTROLS
from didi.sampling.options import SamplerName

DEFAULT_LENGTHS = (60, 100, 150, 200, 250)
DEFAULT_NFES = (8, 16, 32, 64, 128, 256, 512)
EXAMPLE_NFES = (8, 16, 32)
"""Numbers of moves of Figures 6 and 7."""
STUDENT_NFES, TEACHER_NFE = (8, 16), 64
"""Numbers of moves at which the students are compared with the teacher."""


@dataclass(frozen=True)
class ProteinPlan:
    """A teacher, its students, and the settings at which they are compared.

    Attributes:
        teacher: bundle of the teacher.
        students: bundles of students of several training seeds.
        lengths: residues of the samples, ascending.
        nfes: numbers of moves, ascending.
        samplers: samplers of the students.
        provenances: provenance of the teacher, then of each student.
    """

    teacher: str
    students: tuple[str, ...]
    lengths: tuple[int, ...]
    nfes: tuple[int, ...]
    samplers: tuple[SamplerName, ...] = ("ancestral",)
    provenances: tuple[Mapping[str, Any], ...] = ()

    @property
    def teacher_samplers(self) -> tuple[SamplerName, ...]:
        """Samplers of the teacher: all but ``guided``, which needs a discriminator."""
        return tuple(sampler for sampler in self.samplers if sampler != "guided")

    def teacher_cell(self, sampler: SamplerName, length: int, nfe: int) -> SampleCell:
        """A set of samples of the teacher."""
        return SampleCell(self.teacher, "teacher", sampler, length, nfe)

    def student_cells(self, sampler: SamplerName, length: int, nfe: int) -> list[SampleCell]:
        """A set of samples of each student, in the order of ``students``."""
        return [SampleCell(student, "student", sampler, length, nfe) for student in self.students]

    @property
    def controls(self) -> list[ControlCell]:
        """The control sets at every length."""
        return [ControlCell(name, length) for length in self.lengths for name in CONTROLS]

    @property
    def cells(self) -> list[SampleCell]:
        """All samples of Figure 5, the samples that take longest first."""
        settings = [(length, nfe) for nfe in reversed(self.nfes) for length in reversed(self.lengths)]
        teacher = [self.teacher_cell(sampler, *setting) for sampler in self.teacher_samplers for setting in settings]
        students = [self.student_cells(sampler, *setting) for sampler in self.samplers for setting in settings]
        return [*teacher, *(cell for of_seeds in zip(*students, strict=True) for cell in of_seeds)]

    @property
    def example_nfes(self) -> tuple[int, ...]:
        """Numbers of moves of Figures 6 and 7: those of 8, 16 and 32 in ``nfes``, or its three smallest."""
        return tuple(nfe for nfe in self.nfes if nfe in EXAMPLE_NFES) or self.nfes[:3]

    @property
    def teacher_examples(self) -> list[SampleCell]:
        """Samples of which Figure 6 shows some, from the first sampler."""
        return [self.teacher_cell(self.teacher_samplers[0], *setting) for setting in self._example_settings]

    @property
    def student_examples(self) -> list[SampleCell]:
        """Samples of which Figure 7 shows some, from the first sampler."""
        return [cell for setting in self._example_settings for cell in self.student_cells(self.samplers[0], *setting)]

    @property
    def _example_settings(self) -> list[tuple[int, int]]:
        return [(length, nfe) for length in self.lengths for nfe in self.example_nfes]
