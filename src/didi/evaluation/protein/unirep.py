"""UniRep (Alley et al. 2019) as a judge: a causal protein language model trained on UniRef50.

Its weights are a pinned archive (asset ``unirep``) that the user downloads: CC BY-NC 4.0, not for commercial use.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from didi.data.assets import fetch
from didi.errors import UsageError
from didi.evaluation.protein.autoregressive import NUM_SHUFFLES, gains, with_copies
from didi.evaluation.protein.interface import ResidueScores
from didi.models.unirep import PAD_TOKEN, UniRep, tokens_of

UNIREP, UNIREP_ORDER = "unirep", "unirep-order"
UNITS = (64, 256, 1900)
"""Units of a layer of the published networks."""
BATCH = 64
MAX_BATCH_RESIDUES = 64 * 256
"""Largest number of residues in a batch of several proteins, padding included."""


class UniRepJudge:
    """Mean negative log-likelihood of a protein in nats a residue.

    It prefers poly-alanine to natural proteins, so ``judges.check_judge`` refuses it; ``UniRepOrderJudge`` does not.

    Args:
        network: the network of ``load_network``.
        name: name of the judge in reports.
    """

    unit, is_higher_better = "nats a residue", False
    residue_unit = "nats below the log frequency of the residue"

    def __init__(self, network: UniRep, *, name: str = UNIREP) -> None:
        self.name, self._network = name, network

    def score(self, sequences: Sequence[str]) -> Float[Tensor, " n"]:
        """See ``interface.ProteinJudge``; equal in every batch up to rounding (1e-5).

        Raises:
            UsageError: a sequence is empty, or has a letter that UniRep does not know.
        """
        return torch.tensor([float(nats.mean()) for nats in residue_nats(self._network, sequences)]).double()

    def residues(self, sequences: Sequence[str], frequencies: Mapping[str, float]) -> list[ResidueScores]:
        """See ``interface.ResidueJudge``.

        The score is the log of the frequency of a residue in the corpus minus its log-probability, given the residues
        before it: 0 where the two are equal, negative where the network gives it a higher probability.

        Raises:
            UsageError: a sequence is empty, or has a letter that UniRep does not know.
        """
        residue_gains = gains(residue_nats(self._network, sequences), sequences, frequencies)
        return [ResidueScores(-gain) for gain in residue_gains]


class UniRepOrderJudge:
    """Score of a protein: mean NLL of shuffled copies minus the NLL of the protein, nats a residue.

    The score of ``autoregressive.OrderJudge``, which does not reward a composition of residues.

    Args:
        network: the network of ``load_network``.
        name: name of the judge in reports.
        num_shuffles: number of shuffled copies of each protein.
    """

    unit, is_higher_better = "nats a residue", True
    residue_unit = "nats above the log frequency of the residue"

    def __init__(self, network: UniRep, *, name: str = UNIREP_ORDER, num_shuffles: int = NUM_SHUFFLES) -> None:
        self.name, self._network, self._num_shuffles = name, network, num_shuffles

    def score(self, sequences: Sequence[str]) -> Float[Tensor, " n"]:
        """See ``UniRepJudge.score``."""
        copies = [copy for residues in sequences for copy in with_copies(residues, self._num_shuffles)]
        nats = UniRepJudge(self._network).score(copies).view(len(sequences), 1 + self._num_shuffles)
        return nats[:, 1:].mean(1) - nats[:, 0]

    def residues(self, sequences: Sequence[str], frequencies: Mapping[str, float]) -> list[ResidueScores]:
        """See ``autoregressive.OrderJudge.residues``."""
        residue_gains = gains(residue_nats(self._network, sequences), sequences, frequencies)
        return [ResidueScores(gain) for gain in residue_gains]


def residue_nats(network: UniRep, sequences: Sequence[str]) -> list[Float[Tensor, " _"]]:
    """Negative log-likelihood of each residue of each protein in nats, float64; the end of the protein is not scored.

    Proteins of similar length share a batch.

    Raises:
        UsageError: a sequence is empty, or has a letter that UniRep does not know.
    """
    tokens, by_number = [tokens_of(residues) for residues in sequences], dict[int, Tensor]()
    order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
    while order:
        size = max(1, min(BATCH, MAX_BATCH_RESIDUES // len(sequences[order[0]])))
        batch, order = order[:size], order[size:]
        padded = pad_sequence([tokens[number] for number in batch], batch_first=True, padding_value=PAD_TOKEN)
        terms = network.nll(padded.to(network.embedding.device))
        for number, nats in zip(batch, terms.double().cpu(), strict=True):
            by_number[number] = nats[: len(sequences[number])]
    return [by_number[number] for number in range(len(sequences))]


def load_network(device: str | torch.device = "cpu", *, units: int = UNITS[-1]) -> UniRep:
    """Load the published network with ``units`` units a layer; the first call downloads the archive.

    Raises:
        UsageError: there is no such network.
        DidiError: the archive cannot be fetched.
    """
    if units not in UNITS:
        raise UsageError(f"UniRep has {', '.join(map(str, UNITS))} units; got {units}: name one of these")
    with np.load(fetch(UNIREP) / f"{units}_weights" / "model_weights.npz", allow_pickle=False) as arrays:
        return UniRep({name: torch.from_numpy(arrays[name]) for name in arrays.files}).to(device)


def load_unirep(device: str | torch.device) -> UniRepJudge:
    """Load the network of 1,900 units as a judge by likelihood.

    Raises:
        DidiError: the archive cannot be fetched.
    """
    return UniRepJudge(load_network(device))


def load_unirep_order(device: str | torch.device) -> UniRepOrderJudge:
    """Load the network of 1,900 units as a judge of the order of residues.

    Raises:
        DidiError: the archive cannot be fetched.
    """
    return UniRepOrderJudge(load_network(device))
