"""PredictDSSP as a judge: a small network that predicts the secondary structure of each residue.

Its weights are a pinned archive (asset ``predict-dssp``, MIT). The network is the bidirectional LSTM of PARROT
(Griffith and Holehouse 2021) with 16,763 parameters.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from didi.data.assets import fetch
from didi.errors import UsageError
from didi.evaluation.protein.autoregressive import NUM_SHUFFLES, with_copies
from didi.evaluation.protein.interface import ResidueScores
from didi.models.proteins import RESIDUES

DSSP_ORDER = "dssp-order"
_ASSET = "predict-dssp"
_WEIGHTS = "dssp_2022_01_07_CB_thresh_0p8_hs20_nl2.pt"
_BATCH = 64


class SecondaryStructure(nn.Module):
    """Predicts whether each residue is in a helix, in a strand, or in neither.

    Args:
        hidden_size: units of a direction of a layer.
        num_layers: layers of the LSTM.
    """

    def __init__(self, *, hidden_size: int = 20, num_layers: int = 2) -> None:
        super().__init__()
        # The inputs are one-hot vectors of the residues in alphabetical order.
        self.lstm = nn.LSTM(len(RESIDUES), hidden_size, num_layers, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden_size, 3)

    @torch.no_grad()
    def probabilities(self, sequences: Sequence[str]) -> list[Float[Tensor, "_ 3"]]:
        """Probabilities of helix, strand and coil at each residue of each protein, float64.

        Raises:
            UsageError: a sequence is empty, or has a letter other than the 20 standard residues.
        """
        for residues in sequences:
            if not residues or not set(residues) <= set(RESIDUES):
                raise UsageError(
                    f"{DSSP_ORDER} judges proteins of the 20 standard residues; got {residues[:20]!r}: leave it out"
                )
        device, probs = self.fc.weight.device, list[Tensor]()
        for begin in range(0, len(sequences), _BATCH):
            batch = sequences[begin : begin + _BATCH]
            rows = [torch.tensor([RESIDUES.index(letter) for letter in residues], device=device) for residues in batch]
            packed = pack_sequence([one_hot(row, len(RESIDUES)).float() for row in rows], enforce_sorted=False)
            hidden = unpack_sequence(self.lstm(packed)[0])
            probs += [self.fc(row).double().softmax(-1).cpu() for row in hidden]
        return probs


class DsspOrderJudge:
    """Score of a protein: confidence of its secondary structure minus that of shuffled copies.

    The confidence is the probability of the most probable class, averaged over residues. It is higher for poly-alanine
    than for natural proteins, so that of the copies is subtracted.

    Args:
        network: the network of ``load_network``.
        name: name of the judge in reports.
        num_shuffles: number of shuffled copies of each protein.
    """

    unit, is_higher_better = "probability", True
    residue_unit = "probability"

    def __init__(
        self, network: SecondaryStructure, *, name: str = DSSP_ORDER, num_shuffles: int = NUM_SHUFFLES
    ) -> None:
        self.name, self._network, self._num_shuffles = name, network.eval(), num_shuffles

    def score(self, sequences: Sequence[str]) -> Float[Tensor, " n"]:
        """See ``interface.ProteinJudge``; equal in every batch up to rounding (1e-6).

        Raises:
            UsageError: a sequence is empty, or has a letter other than the 20 standard residues.
        """
        copies = [copy for residues in sequences for copy in with_copies(residues, self._num_shuffles)]
        means = [float(row.amax(-1).mean()) for row in self._network.probabilities(copies)]
        confidence = torch.tensor(means, dtype=torch.float64).view(len(sequences), 1 + self._num_shuffles)
        return confidence[:, 0] - confidence[:, 1:].mean(1)

    def residues(self, sequences: Sequence[str], frequencies: Mapping[str, float]) -> list[ResidueScores]:
        """See ``interface.ResidueJudge``.

        The score is the probability of the most probable class, from 1/3 to 1; ``frequencies`` are not read.

        Raises:
            UsageError: a sequence is empty, or has a letter other than the 20 standard residues.
        """
        del frequencies
        return [ResidueScores(row.amax(-1)) for row in self._network.probabilities(sequences)]


def load_network(device: str | torch.device = "cpu") -> SecondaryStructure:
    """Load the published network; the first call downloads the archive.

    Raises:
        DidiError: the archive cannot be fetched.
    """
    weights = torch.load(fetch(_ASSET) / _WEIGHTS, map_location="cpu", weights_only=True)
    network = SecondaryStructure()
    network.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()})
    return network.eval().to(device)


def load_dssp_order(device: str | torch.device) -> DsspOrderJudge:
    """Load the published network as a judge of secondary structure.

    Raises:
        DidiError: the archive cannot be fetched.
    """
    return DsspOrderJudge(load_network(device))
