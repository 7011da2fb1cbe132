"""The sample sets of docs/results/tiny-news.md; see ``tiny_news``."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from didi.evaluation.anchors import ANCHORS

NFES = (4, 8, 16, 32, 64, 128)
GUIDED_NFES = (4, 8, 16)  # larger numbers take minutes a cell
TEMPERATURES = (0.8, 0.9, 1.1, 1.2)
LENGTH = 128
TIMED_ROUNDS = {1: 3, 8: 3}  # numbers of rounds by batch size; the tables show the largest batch size
Timing = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Cell:
    """One sample set."""

    role: str
    sampler: str = "ancestral"
    nfe: int = 0
    temperature: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.role}-{self.sampler}-{self.nfe}-{self.temperature:g}"

    @property
    def depends_on(self) -> list[str]:
        """Names of the digests (``tiny_news.models``) on which the figures of the cell depend."""
        guide = ["discriminator", "guidance"] if self.sampler == "guided" else []
        return ["tokenizer", *([] if self.role in ("data", *ANCHORS) else [self.role]), *guide]


DATA, BASELINE = Cell("data"), Cell("autoregressive", nfe=LENGTH)
TEACHER_8, TEACHER_32, TEACHER_128 = (Cell("teacher", nfe=nfe) for nfe in (8, 32, 128))
STUDENT_8, GUIDED_8 = Cell("student", nfe=8), Cell("student", "guided", 8)
SWEPT = (TEACHER_8, TEACHER_32, STUDENT_8, GUIDED_8, BASELINE)


def cells() -> Iterator[Cell]:
    yield from (DATA, *map(Cell, ANCHORS))
    for nfe in NFES:
        yield from (Cell("teacher", nfe=nfe), Cell("student", nfe=nfe))
    yield from (Cell("student", "guided", nfe) for nfe in GUIDED_NFES)
    yield BASELINE
    for cell in SWEPT:
        # Guided cells take long, and their sweep does not need the highest temperature.
        temperatures = TEMPERATURES[:-1] if cell == GUIDED_8 else TEMPERATURES
        yield from (replace(cell, temperature=temperature) for temperature in temperatures)
    # The slowest cells; one further temperature suffices to interpolate to the student's entropy.
    yield Cell("teacher", nfe=128, temperature=0.9)
