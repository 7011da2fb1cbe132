"""Judges of proteins by name, and the check that a judge orders the controls; a judge that does not is refused.

To add a judge, write a class with the interface of ``interface.ProteinJudge`` and add one line to ``JUDGES``.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch

from didi.errors import DidiError, UsageError, suggestion
from didi.evaluation.frontier import Interval, mean_interval
from didi.evaluation.protein.autoregressive import load_order_judge
from didi.evaluation.protein.controls import ORDER
from didi.evaluation.protein.esmfold import ESMFOLD, load_esmfold
from didi.evaluation.protein.igfold import IGFOLD, load_igfold
from didi.evaluation.protein.interface import ProteinJudge
from didi.evaluation.protein.predict_dssp import DSSP_ORDER, load_dssp_order
from didi.evaluation.protein.unirep import UNIREP, UNIREP_ORDER, load_unirep, load_unirep_order

Device = str | torch.device

MIN_PAIRS = 8
"""Fewest natural proteins for which the order of the controls is tested."""
JUDGES: dict[str, Callable[[Device], ProteinJudge]] = {
    ESMFOLD: load_esmfold,
    IGFOLD: load_igfold,
    UNIREP: load_unirep,
    UNIREP_ORDER: load_unirep_order,
    DSSP_ORDER: load_dssp_order,
}
"""Functions that load a judge on a device, by its name."""


def load_protein_judge(name: str, *, device: Device = "cpu") -> ProteinJudge:
    """Load a judge by name, or the autoregressive network of a bundle folder (``autoregressive.OrderJudge``).

    Raises:
        UsageError: no judge has that name, or the bundle has no autoregressive network of proteins.
        DidiError: the judge cannot be read or reached.
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
    """Difference of a judge's scores of two controls.

    Attributes:
        better: name of the control that should score better.
        worse: name of the control that should score worse.
        difference: mean over pairs of sequences of the score of ``better`` minus that of ``worse``, with its sign
            changed where a lower score is better; positive if the judge orders the controls correctly.
        interval: 95% bootstrap interval of the mean.
    """

    better: str
    worse: str
    difference: float
    interval: Interval

    @property
    def holds(self) -> bool:
        """Whether the judge prefers ``better`` significantly: the interval lies above 0."""
        return self.interval[0] > 0


def comparisons(judge: ProteinJudge, controls: Mapping[str, Sequence[str]]) -> list[Comparison]:
    """Compare the pairs of controls in ``controls.ORDER`` by the scores of a judge.

    Args:
        judge: scores every sequence once.
        controls: from ``controls.control_sets``; the n-th sequences of two sets are a pair.

    Raises:
        UsageError: the sets have fewer than ``MIN_PAIRS`` sequences.
    """
    if (num := len(controls[ORDER[0][0]])) < MIN_PAIRS:
        raise UsageError(f"a judge is tested on controls of {MIN_PAIRS} proteins or more; got {num}: give more")
    sign = 1 if judge.is_higher_better else -1
    scores = {name: sign * judge.score(controls[name]) for name in dict.fromkeys(chain.from_iterable(ORDER))}
    results = []
    for better, worse in ORDER:
        gaps = scores[better] - scores[worse]
        results.append(Comparison(better, worse, float(gaps.mean()), mean_interval(gaps)))
    return results


def check_judge(judge: ProteinJudge, controls: Mapping[str, Sequence[str]]) -> list[Comparison]:
    """Check that a judge orders the controls, and return the comparisons.

    Raises:
        UsageError: see ``comparisons``.
        DidiError: the judge does not order the controls, so its scores of samples are meaningless.
    """
    results = comparisons(judge, controls)
    if failed := [result for result in results if not result.holds]:
        differences = "; ".join(
            f"{result.better} is {result.difference:.3g} [{result.interval[0]:.3g}, {result.interval[1]:.3g}] "
            f"{judge.unit} better than {result.worse}"
            for result in failed
        )
        raise DidiError(
            f"a judge orders the controls, else it is not used; {judge.name} does not: {differences}. Give it more "
            "natural proteins, or choose another judge"
        )
    return results
