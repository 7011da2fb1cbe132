"""Sets of proteins of ``didi reproduce --scale proteins``, samples, controls, examples; a judge of stored scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from didi.apps.reproduce.cells import Digest, origin_of
from didi.models.bundle import Role
from didi.sampling.options import SamplerName


@dataclass(frozen=True)
class SampleCell:
    """Samples of one network.

    Attributes:
        bundle: name or folder of the bundle.
        role: role of the network in the bundle.
        sampler: name of the sampler.
        length: number of residues of each sequence.
        nfe: number of moves.
    """

    bundle: str
    role: Role
    sampler: SamplerName
    length: int
    nfe: int

    def name(self, digest: Digest) -> str:
        """File name of the cell, without its extension."""
        return f"{origin_of(self.bundle, digest)}-{self.role}-{self.sampler}-length{self.length}-{self.nfe}"


@dataclass(frozen=True)
class ControlCell:
    """A control set made of held-out proteins of similar length.

    Attributes:
        control: name of the control, see ``evaluation.protein.controls``.
        length: number of residues; the held-out proteins nearest to this length are used.
    """

    control: str
    length: int

    def name(self, digest: Digest) -> str:
        """File name of the cell, without its extension."""
        del digest
        return f"control-{self.control}-length{self.length}"


@dataclass(frozen=True)
class ExampleCell:
    """Sequences that a figure shows. Its record has scores and positions of residues if the judge gives them.

    Attributes:
        sequences: residues of each sequence.
    """

    sequences: tuple[str, ...]

    def name(self, digest: Digest) -> str:
        """File name of the cell, without its extension."""
        del digest
        return f"examples-{sha256(' '.join(self.sequences).encode()).hexdigest()[:12]}"


ProteinCell = SampleCell | ControlCell | ExampleCell


@dataclass
class RecordedJudge:
    """A judge that returns recorded scores.

    Attributes:
        name: name of the judge.
        unit: unit of its scores.
        is_higher_better: whether a larger score is better.
        scores: recorded score of each sequence.
    """

    name: str
    unit: str
    is_higher_better: bool
    scores: dict[str, float]

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> "RecordedJudge":
        """The judge of a study, with the scores that are recorded in some of its cells.

        Args:
            records: one record or more.
        """
        scores = {
            sequence: score
            for record in records
            for sequence, score in zip(record["sequences"], record["scores"], strict=True)
        }
        return cls(**records[0]["judge"], scores=scores)

    def score(self, sequences: Sequence[str]) -> Float[Tensor, " n"]:
        """See ``evaluation.protein.interface.ProteinJudge``.

        Raises:
            KeyError: a sequence was not scored.
        """
        return torch.tensor([self.scores[sequence] for sequence in sequences], dtype=torch.float64)
