"""Batches of proteins of similar length, with padding."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from didi.arguments import whole_number
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.models.proteins import ALPHABET, BEGIN_ID, END_ID, PAD_ID

FRAME = 2
"""Number of positions of the begin and the end symbol."""
_IDS = np.full(128, -1, dtype=np.int64)
_IDS[[ord(name) for name in ALPHABET if name.isalpha()]] = [n for n, name in enumerate(ALPHABET) if name.isalpha()]


def protein_rows(sequences: Sequence[str]) -> Int[Tensor, "b l"]:
    """Tokens of proteins with begin and end symbols, padded to the longest protein.

    Raises:
        UsageError: a sequence has an unknown letter.
    """
    width = max(map(len, sequences), default=0) + FRAME
    tokens = torch.full((len(sequences), width), PAD_ID)
    for row, residues in zip(tokens, sequences, strict=True):
        row[0], row[len(residues) + 1] = BEGIN_ID, END_ID
        row[1 : len(residues) + 1] = residue_ids(residues)
    return tokens


def canvas_of_rows(rows: Int[Tensor, "b l"]) -> Canvas:
    """The canvas of ``protein_rows``: residues are free, begin and end symbols are given, the rest is padding."""
    is_real = rows != PAD_ID
    is_free = is_real & (rows != BEGIN_ID) & (rows != END_ID)
    return Canvas(rows, is_free, is_real, has_padding=not bool(is_real.all()))


def protein_canvas(sequences: Sequence[str]) -> Canvas:
    """The canvas of proteins, see ``canvas_of_rows``.

    Raises:
        UsageError: a sequence has an unknown letter.
    """
    return canvas_of_rows(protein_rows(sequences))


def residue_ids(residues: str) -> Int[Tensor, " l"]:
    """Tokens of a protein, without begin and end symbols.

    Raises:
        UsageError: a letter is unknown.
    """
    codes = np.frombuffer(residues.encode("ascii", "replace"), dtype=np.uint8)
    ids = _IDS[np.minimum(codes, 127)]
    if (ids < 0).any():
        wrong = residues[int((ids < 0).argmax())]
        raise UsageError(f"a protein is made of the letters {''.join(ALPHABET[4:29])}; got {wrong!r}")
    return torch.from_numpy(ids)


class LengthBuckets:
    """Training batches of proteins of similar length, as a function of the step.

    An epoch has one random member of each cluster, as in the training of ESM-2 (https://doi.org/10.1126/science.ade2574),
    so that large families do not dominate. These proteins are shuffled, sorted by length buckets of ``width`` residues
    and cut into batches of equal size, whose order is random. Proteins that do not fill a batch are left out;
    they are chosen at random in each epoch.

    Args:
        clusters: residues of the members of each cluster.
        batch_size: number of proteins in a batch.
        width: width of a length bucket in residues; narrow buckets need less padding.
        seed: seed of the order.

    Raises:
        UsageError: there are fewer clusters than ``batch_size``, or a cluster is empty.
    """

    def __init__(self, clusters: Sequence[Sequence[str]], *, batch_size: int, width: int = 32, seed: int = 0) -> None:
        width, batch_size = whole_number("width", width, low=1), whole_number("batch_size", batch_size, low=1)
        if not all(clusters):
            raise UsageError("a cluster has one protein or more; got an empty one: leave it out")
        if len(clusters) < batch_size:
            raise UsageError(
                f"a batch has at most one protein of each of the {len(clusters)} clusters; got batch_size "
                f"{batch_size}: lower it"
            )
        sizes = torch.tensor([len(members) for members in clusters])
        self._sizes, self._first = sizes, sizes.cumsum(0) - sizes  # members of a cluster, and where they begin below
        self._sequences = [residues for members in clusters for residues in members]
        self._bucket = (torch.tensor([len(residues) for residues in self._sequences]) - 1) // width
        self._batch_size, self._seed = batch_size, seed
        self.num_batches = len(clusters) // batch_size
        self._epoch, self._batches = 0, self._batches_of(0)

    def batch(self, step: int) -> Int[Tensor, "b l"]:
        """The rows of a step, see ``protein_rows``; they depend on the step only."""
        epoch, number = divmod(step, self.num_batches)
        if epoch != self._epoch:
            self._batches, self._epoch = self._batches_of(epoch), epoch
        return protein_rows([self._sequences[index] for index in self._batches[number].tolist()])

    def _batches_of(self, epoch: int) -> Int[Tensor, "n b"]:
        generator = named_generator(self._seed, "protein-batches", epoch)
        uniforms = torch.rand(len(self._sizes), dtype=torch.float64, generator=generator)
        members = self._first + (uniforms * self._sizes).long()
        shuffled = torch.randperm(len(members), generator=generator)
        chosen = members[shuffled[: self.num_batches * self._batch_size]]
        order = chosen[self._bucket[chosen].argsort(stable=True)]
        batch_order = torch.randperm(self.num_batches, generator=generator)
        return order.view(self.num_batches, self._batch_size)[batch_order]
