"""What a judge of proteins provides."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class ProteinJudge(Protocol):
    """A score of single proteins.

    Attributes:
        name: name of the judge in reports.
        unit: unit of the score, such as ``pLDDT``.
        is_higher_better: whether a larger score is better.
    """

    name: str
    unit: str
    is_higher_better: bool

    def score(self, sequences: Sequence[str]) -> Float[Tensor, " n"]:
        """Score of each sequence, float64; it does not depend on the other sequences."""
        ...


class ResidueScores(NamedTuple):
    """Scores of the residues of one protein, and the structure that they belong to.

    Attributes:
        scores: score of each residue, float64.
        alpha_carbons: coordinates of the alpha carbon of each residue in Å, float64; None if the judge predicts no
            structure.
    """

    scores: Float[Tensor, " l"]
    alpha_carbons: Float[Tensor, "l 3"] | None = None


@runtime_checkable
class ResidueJudge(ProteinJudge, Protocol):
    """A judge that also scores each residue, and may predict a structure.

    Attributes:
        residue_unit: unit of the scores of residues.
    """

    residue_unit: str

    def residues(self, sequences: Sequence[str], frequencies: Mapping[str, float]) -> list[ResidueScores]:
        """Scores of the residues of each sequence; a larger score is better if ``is_higher_better``.

        Args:
            sequences: residues of each protein.
            frequencies: ``measures.residue_frequencies`` of a corpus, for judges that compare with it.
        """
        ...
