"""ESMFold (Lin et al. 2023, from ``transformers``) as a judge: its confidence in the structure that it predicts."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from didi.errors import UsageError
from didi.evaluation.perplexity import transformers_for

ESMFOLD, REPOSITORY = "esmfold", "facebook/esmfold_v1"
MAX_BATCH_RESIDUES = 1024


class EsmFoldJudge:
    """Mean pLDDT of each protein in [0, 100], over the atoms of its residues; above 70 is confident.

    Args:
        model: an ``EsmForProteinFolding``; put in eval mode.
        name: name of the judge in reports.
        max_batch_residues: most residues of a batch, padding included; a batch has at least one protein.
    """

    unit, is_higher_better = "pLDDT", True

    def __init__(self, model: Any, *, name: str = ESMFOLD, max_batch_residues: int = MAX_BATCH_RESIDUES) -> None:
        self.name = name
        self._model, self._max_batch_residues = model.eval(), max_batch_residues

    def score(self, sequences: Sequence[str]) -> Float[Tensor, " n"]:
        """See ``ProteinJudge.score``.

        Raises:
            UsageError: a sequence is empty.
        """
        if not all(sequences):
            raise UsageError("ESMFold folds proteins of one residue or more; got an empty one: leave it out")
        scores = torch.zeros(len(sequences), dtype=torch.float64)
        order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
        while order:
            size = max(1, self._max_batch_residues // len(sequences[order[0]]))
            batch, order = order[:size], order[size:]
            scores[batch] = self._mean_plddt([sequences[number] for number in batch])
        return scores

    def _mean_plddt(self, sequences: list[str]) -> Float[Tensor, " n"]:
        output = self._model.infer(sequences)
        weight = output["atom37_atom_exists"].cpu().double()  # 0 at padding
        plddt = output["plddt"].cpu().double()
        return 100 * (plddt * weight).sum((1, 2)) / weight.sum((1, 2))


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
