"""Judges of proteins by name, and the rule that a judge which does not order the controls is not used.

A new judge is a class with the contract of ``ProteinJudge`` and one line in ``JUDGES``.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from didi.errors import DidiError, UsageError, suggestion
from didi.evaluation.frontier import Interval, mean_interval
from didi.evaluation.protein.autoregressive import load_order_judge
from didi.evaluation.protein.controls import ORDER
from didi.evaluation.protein.esmfold import ESMFOLD, load_esmfold

Device = str | torch.device


@runtime_checkable
class ProteinJudge(Protocol):
    """A score of single proteins.

    Attributes:
        name: in reports.
        unit: of the score, such as ``pLDDT``.
        is_higher_better: whether a larger score is better.
    """

    name: str
    unit: str
    is_higher_better: bool

    def score(self, sequences: Sequence[str]) -> Float[Tensor, " n"]:
        """Score of each sequence, float64, whatever the others are."""
        ...


@runtime_checkable
class ResidueJudge(ProteinJudge, Protocol):
    """A judge that also has a score of each residue.

    Attributes:
        residue_unit: of the scores of residues.
    """

    residue_unit: str

    def residue_scores(self, sequences: Sequence[str], frequencies: Mapping[str, float]) -> list[Float[Tensor, " _"]]:
        """Score of each residue of each sequence, float64; larger is better if ``is_higher_better``.

        Args:
            sequences: residues.
            frequencies: ``measures.residue_frequencies`` of a corpus, for judges that compare with it.
        """
        ...


@runtime_checkable
class StructureJudge(ProteinJudge, Protocol):
    """A judge that also predicts a structure."""

    def alpha_carbons(self, sequences: Sequence[str]) -> list[Float[Tensor, "_ 3"]]:
        """Coordinates of the alpha carbon of each residue of each sequence in Å, float64."""
        ...


MIN_PAIRS = 8
"""Fewest natural proteins for which the order of the controls is tested."""
JUDGES: dict[str, Callable[[Device], ProteinJudge]] = {ESMFOLD: load_esmfold}
"""For each name, what loads the judge on a device."""


def load_protein_judge(name: str, *, device: Device = "cpu") -> ProteinJudge:
    """The judge called ``name``, or the autoregressive network of a bundle folder (``autoregressive.OrderJudge``).

    Raises:
        UsageError: no judge has that name, or the folder holds none.
        DidiError: it cannot be read or reached.
    """
    if (folder := Path(name).expanduser()).is_dir():
        return load_order_judge(folder, device=device)
    check_judge_name(name)
    return JUDGES[name](device)


def check_judge_name(name: str) -> None:
    """Refuse a name that ``load_protein_judge`` does not know, before anything is loaded.

    Raises:
        UsageError: no judge has that name, and no folder.
    """
    if name not in JUDGES and not Path(name).expanduser().is_dir():
        raise UsageError(
            f"a judge of proteins is one of {', '.join(JUDGES)}, or a bundle folder; got {name!r}"
            f"{suggestion(name, JUDGES)}"
        )


class Comparison(NamedTuple):
    """Two controls as a judge sees them.

    Attributes:
        better: name of the control that is better.
        worse: of the other.
        difference: mean advantage of the better one over the pairs of sequences; positive where the judge agrees.
        interval: 95% bootstrap interval of the mean.
    """

    better: str
    worse: str
    difference: float
    interval: Interval

    @property
    def holds(self) -> bool:
        """Whether the judge prefers the better one, beyond chance."""
        return self.interval[0] > 0


def comparisons(judge: ProteinJudge, controls: Mapping[str, Sequence[str]]) -> list[Comparison]:
    """The pairs of ``controls.ORDER`` by a judge.

    Args:
        judge: scores every sequence once.
        controls: from ``controls.control_sets``, so that the n-th sequences of two sets are a pair.

    Raises:
        UsageError: there are too few of them for an interval.
    """
    if (num := len(controls[ORDER[0][0]])) < MIN_PAIRS:
        raise UsageError(f"a judge is tested on controls of {MIN_PAIRS} proteins or more; got {num}: give more")
    sign = 1 if judge.is_higher_better else -1
    scores = {name: sign * judge.score(controls[name]) for name in dict.fromkeys(chain.from_iterable(ORDER))}
    found = []
    for better, worse in ORDER:
        gaps = scores[better] - scores[worse]
        found.append(Comparison(better, worse, float(gaps.mean()), mean_interval(gaps)))
    return found


def check_judge(judge: ProteinJudge, controls: Mapping[str, Sequence[str]]) -> list[Comparison]:
    """The comparisons of a judge that orders the controls.

    Raises:
        DidiError: it does not; its scores of samples mean nothing then.
    """
    found = comparisons(judge, controls)
    if wrong := [one for one in found if not one.holds]:
        said = "; ".join(
            f"{one.better} is {one.difference:.3g} [{one.interval[0]:.3g}, {one.interval[1]:.3g}] {judge.unit} better "
            f"than {one.worse}"
            for one in wrong
        )
        raise DidiError(
            f"a judge orders the controls, else it is not used; {judge.name} does not: {said}. Give it more natural "
            "proteins, or choose another judge"
        )
    return found
