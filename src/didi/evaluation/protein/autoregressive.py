"""An autoregressive protein network as a judge: how much better it predicts a protein than shuffled copies of it.

By perplexity alone, poly-alanine is better than every natural protein. The difference from shuffled copies does not
reward a composition of residues, and is 0 for a protein of one repeated residue.
"""

import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from didi.data.protein import is_protein_tokenizer
from didi.data.protein_batches import FRAME, protein_canvas
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation.protein.interface import ResidueScores
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import load

NUM_SHUFFLES = 4
BATCH = 16


class OrderJudge:
    """Score of a protein: mean NLL of shuffled copies minus the NLL of the protein, nats a residue.

    The copies of a protein are the same whenever it is scored. Train the network on proteins that were not in the
    training set of the judged model (recipe ``swissprot-ar``); memorised proteins otherwise raise the score.

    Args:
        network: an autoregressive network over the tokens of ESM-2.
        name: name of the judge in reports.
        num_shuffles: number of shuffled copies of each protein.
    """

    unit, is_higher_better = "nats a residue", True
    residue_unit = "nats above the log frequency of the residue"

    def __init__(self, network: AutoregressiveLM, *, name: str, num_shuffles: int = NUM_SHUFFLES) -> None:
        self.name = name
        self._network, self._num_shuffles = network.eval(), num_shuffles

    def score(self, sequences: Sequence[str]) -> Float[Tensor, " n"]:
        """See ``interface.ProteinJudge``.

        Raises:
            UsageError: a sequence is empty, or too long for the network.
        """
        self._check(sequences)
        groups = [self.nats(with_copies(residues, self._num_shuffles)) for residues in sequences]
        return torch.stack([nats[1:].mean() - nats[0] for nats in groups]) if groups else torch.zeros(0).double()

    def residues(self, sequences: Sequence[str], frequencies: Mapping[str, float]) -> list[ResidueScores]:
        """See ``interface.ResidueJudge``.

        The score is the log-probability of a residue, given the residues before it, minus the log of its frequency in
        the corpus: 0 where the two are equal, positive where the network gives it a higher probability.

        Raises:
            UsageError: a sequence is empty, or too long for the network.
        """
        self._check(sequences)
        return [ResidueScores(gain) for gain in gains(self._residue_nats(sequences), sequences, frequencies)]

    def nats(self, sequences: Sequence[str]) -> Float[Tensor, " n"]:
        """Negative log-likelihood of each protein in nats a residue, float64."""
        return torch.stack([nats.mean() for nats in self._residue_nats(sequences)])

    @torch.no_grad()
    def _residue_nats(self, sequences: Sequence[str]) -> list[Float[Tensor, " _"]]:
        """Negative log-likelihood of each residue of each protein in nats, float64."""
        device, residue_nats = next(self._network.parameters()).device, []
        for begin in range(0, len(sequences), BATCH):
            canvas = protein_canvas(sequences[begin : begin + BATCH]).to(device)
            terms = self._network.nll(canvas.tokens).double()
            residue_nats += [nats[is_free].cpu() for nats, is_free in zip(terms, canvas.is_free, strict=True)]
        return residue_nats

    def _check(self, sequences: Sequence[str]) -> None:
        longest = self._network.length - FRAME
        if unfit := [len(residues) for residues in sequences if not 1 <= len(residues) <= longest]:
            raise UsageError(
                f"{self.name} judges proteins of 1 to {longest} residues; got one of {unfit[0]}: leave it out"
            )


def with_copies(residues: str, num_shuffles: int) -> list[str]:
    """A protein, followed by shuffled copies of it, which are always the same."""
    generator = named_generator(0, "order", sha256(residues.encode()).hexdigest())
    orders = [torch.randperm(len(residues), generator=generator).tolist() for _ in range(num_shuffles)]
    return [residues, *("".join(residues[place] for place in order) for order in orders)]


def gains(
    residue_nats: Sequence[Float[Tensor, " _"]], sequences: Sequence[str], frequencies: Mapping[str, float]
) -> list[Float[Tensor, " _"]]:
    """Log-probability of each residue of each protein minus the log of its frequency, in nats, float64.

    Args:
        residue_nats: negative log-likelihood of each residue in nats, float64.
        sequences: the proteins.
        frequencies: see ``interface.ResidueJudge``.
    """
    logs = (torch.tensor([math.log(frequencies[letter]) for letter in residues]).double() for residues in sequences)
    return [-nats - log for nats, log in zip(residue_nats, logs, strict=True)]


def load_order_judge(folder: Path, *, device: str | torch.device = "cpu") -> OrderJudge:
    """Load the autoregressive network of a bundle of ``didi pretrain swissprot-ar`` as a judge.

    Raises:
        UsageError: the bundle has no autoregressive network of proteins.
    """
    bundle = load(str(folder))
    network = bundle.autoregressive
    if network is None or not is_protein_tokenizer(bundle.tokenizer):
        raise UsageError(
            f"a judge of proteins is a bundle with an autoregressive network of them; {folder} holds "
            f"{', '.join(bundle.networks())}: name one that didi pretrain swissprot-ar made"
        )
    return OrderJudge(network.to(device), name=str(folder))
