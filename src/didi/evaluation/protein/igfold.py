"""IgFold (Ruffolo et al. 2023, package ``igfold``) as a judge of antibodies: the error it predicts for its structure.

The package and its weights are under a licence for non-commercial use. AntiBERTy, whose embeddings and attention maps
are the input of IgFold, is the pinned asset ``antiberty``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from didi.data.assets import fetch
from didi.errors import DidiError, UsageError, first_line, from_checkout
from didi.evaluation.perplexity import transformers_for
from didi.evaluation.protein.interface import ResidueScores
from didi.models.proteins import RESIDUES

IGFOLD = "igfold"
LONGEST = 510
"""Largest number of residues of a chain: AntiBERTy has 512 positions, two of them for the begin and end symbols."""
NUM_BACKBONE_ATOMS, ALPHA_CARBON = 3, 1
"""The atoms of a residue are N, the alpha carbon, C and others."""
QUANTILE = 0.9


class Prediction(NamedTuple):
    """The structure of one chain by one network of IgFold.

    Attributes:
        errors: predicted error of N, alpha carbon, C and beta carbon in Å.
        positions: coordinates of N, alpha carbon, C and further atoms in Å.
    """

    errors: Float[Tensor, "l 4"]
    positions: Float[Tensor, "l a 3"]


class IgFoldJudge:
    """Predicted error of the backbone (N, alpha carbon, C) of each heavy chain in Å, mean over its residues.

    Each chain is folded alone, by every network, and the prediction whose 90% quantile of errors is the lowest counts.
    The package first refines bond lengths and angles of every prediction, which is left out here: it takes longer than
    the prediction itself. Selection and errors may differ from the package's for this reason.

    Args:
        predict: function that returns the prediction of each network for one chain.
        name: name of the judge in reports.
    """

    unit, is_higher_better = "Å", False
    residue_unit = "Å"

    def __init__(self, predict: Callable[[str], Sequence[Prediction]], *, name: str = IGFOLD) -> None:
        self.name = name
        self._predict = predict

    def score(self, sequences: Sequence[str]) -> Float[Tensor, " n"]:
        """See ``interface.ProteinJudge``.

        Raises:
            UsageError: a sequence is empty, too long, or has a letter that is not a standard residue.
        """
        means = [residues.scores.mean() for residues in self.residues(sequences, {})]
        return torch.stack(means) if means else torch.zeros(0).double()

    def residues(self, sequences: Sequence[str], frequencies: Mapping[str, float]) -> list[ResidueScores]:
        """See ``interface.ResidueJudge``: the mean error over the backbone of each residue, and the structure.

        Each sequence is folded once; ``frequencies`` are not read.

        Raises:
            UsageError: a sequence is empty, too long, or has a letter that is not a standard residue.
        """
        del frequencies
        for sequence in sequences:
            if not 1 <= len(sequence) <= LONGEST or not set(sequence) <= set(RESIDUES):
                letters = "".join(sorted(set(sequence) - set(RESIDUES)))
                raise UsageError(
                    f"IgFold folds chains of 1 to {LONGEST} residues of {RESIDUES}; got {len(sequence)} residues"
                    f"{f' with {letters!r}' if letters else ''} in {sequence[:40]!r}: leave it out"
                )
        return [self._folded(sequence) for sequence in sequences]

    def _folded(self, sequence: str) -> ResidueScores:
        best = min(self._predict(sequence), key=lambda prediction: float(prediction.errors.quantile(QUANTILE)))
        scores = best.errors[:, :NUM_BACKBONE_ATOMS].cpu().double().mean(1)
        return ResidueScores(scores, best.positions[:, ALPHA_CARBON].cpu().double())


def load_igfold(device: str | torch.device) -> IgFoldJudge:
    """Load IgFold from the installed package, and AntiBERTy from a package registry.

    Raises:
        DidiError: the package is not installed, or the weights cannot be read or reached.
    """
    try:
        from antiberty import AntiBERTyRunner
        from igfold import IgFoldInput
        from igfold.utils.checkpoint import find_weights, load_model
    except ImportError as error:
        raise DidiError(
            f"judge {IGFOLD!r} needs igfold, whose licence allows non-commercial use only: {from_checkout('igfold')} "
            f"({first_line(error)})"
        ) from error
    folder = fetch("antiberty") / "AntiBERTy_md_smooth"
    with transformers_for("judge", IGFOLD, known=[IGFOLD]):
        language_model = AntiBERTyRunner(device=device, checkpoint_path=str(folder))
        networks = [load_model(file, device=device) for file in find_weights()]

    @torch.no_grad()
    def predict(sequence: str) -> list[Prediction]:
        (embedding,), (attention,) = language_model.embed([sequence], return_attention=True)
        chain = IgFoldInput(embeddings=[embedding[None, 1:-1]], attentions=[attention[None, :, :, 1:-1, 1:-1]])
        outputs = [network(chain) for network in networks]
        return [Prediction(output.prmsd.reshape(len(sequence), -1), output.coords[0]) for output in outputs]

    return IgFoldJudge(predict)
