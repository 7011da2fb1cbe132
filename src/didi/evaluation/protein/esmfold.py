"""ESMFold (Lin et al. 2023, from ``transformers``) as a judge: its confidence in the structure that it predicts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from didi.errors import UsageError
from didi.evaluation.perplexity import transformers_for
from didi.evaluation.protein.interface import ResidueScores

ESMFOLD, REPOSITORY = "esmfold", "facebook/esmfold_v1"
MAX_BATCH_RESIDUES = 1024
ALPHA_CARBON = 1
"""Number of the alpha carbon among the 14 atoms of a residue in the output."""


class EsmFoldJudge:
    """Mean pLDDT of each protein in [0, 100], over the atoms of its residues; above 70 is confident.

    Args:
        model: an ``EsmForProteinFolding``; put in eval mode.
        name: name of the judge in reports.
        max_batch_residues: largest number of residues in a batch, padding included; a batch has at least one protein.
    """

    unit, is_higher_better = "pLDDT", True
    residue_unit = "pLDDT"

    def __init__(self, model: Any, *, name: str = ESMFOLD, max_batch_residues: int = MAX_BATCH_RESIDUES) -> None:
        self.name = name
        self._model, self._max_batch_residues = model.eval(), max_batch_residues

    def score(self, sequences: Sequence[str]) -> Float[Tensor, " n"]:
        """See ``interface.ProteinJudge``.

        Raises:
            UsageError: a sequence is empty.
        """
        scores = torch.zeros(len(sequences), dtype=torch.float64)
        for batch, output in self._folded(sequences):
            plddt, weight = _plddt(output)
            scores[batch] = 100 * (plddt * weight).sum((1, 2)) / weight.sum((1, 2))
        return scores

    def residues(self, sequences: Sequence[str], frequencies: Mapping[str, float]) -> list[ResidueScores]:
        """See ``interface.ResidueJudge``: the mean pLDDT over the atoms of each residue, and the predicted structure.

        Each sequence is folded once; ``frequencies`` are not read.

        Raises:
            UsageError: a sequence is empty.
        """
        del frequencies
        scores: dict[int, ResidueScores] = {}
        for batch, output in self._folded(sequences):
            plddt, weight = _plddt(output)
            means = 100 * (plddt * weight).sum(2) / weight.sum(2).clamp(min=1)
            atoms = output["positions"][-1][:, :, ALPHA_CARBON].cpu().double()  # of the last block
            for row, number in enumerate(batch):
                length = len(sequences[number])
                scores[number] = ResidueScores(means[row, :length], atoms[row, :length])
        return [scores[number] for number in range(len(sequences))]

    def _folded(self, sequences: Sequence[str]) -> Iterator[tuple[list[int], Any]]:
        """Numbers of sequences of similar length, and the model's output for them."""
        if not all(sequences):
            raise UsageError("ESMFold folds proteins of one residue or more; got an empty one: leave it out")
        order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
        while order:
            size = max(1, self._max_batch_residues // len(sequences[order[0]]))
            batch, order = order[:size], order[size:]
            yield batch, self._model.infer([sequences[number] for number in batch])


def _plddt(output: Any) -> tuple[Float[Tensor, "b l a"], Float[Tensor, "b l a"]]:
    """Confidence of each atom (pLDDT) in [0, 1], and 1 for the atoms that exist, 0 for others and at padding."""
    return output["plddt"].cpu().double(), output["atom37_atom_exists"].cpu().double()


def load_esmfold(device: str | torch.device) -> EsmFoldJudge:
    """Load ESMFold from the Hub; on a CPU it takes minutes for each protein.

    Raises:
        DidiError: transformers is not installed, or the model cannot be read or reached.
    """
    with transformers_for("judge", REPOSITORY, known=[]) as transformers:
        model = transformers.EsmForProteinFolding.from_pretrained(REPOSITORY)
    if torch.device(device).type == "cpu":  # the published language model is in half precision, which CPUs are slow at
        model.esm = model.esm.float()
    return EsmFoldJudge(model.to(device))
