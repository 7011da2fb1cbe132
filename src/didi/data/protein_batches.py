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
from didi.models.esm2 import ALPHABET, BEGIN_ID, END_ID, PAD_ID

FRAME = 2
"""Positions of the begin and the end symbol."""
_IDS = np.full(128, -1, dtype=np.int64)
_IDS[[ord(name) for name in ALPHABET if name.isalpha()]] = [n for n, name in enumerate(ALPHABET) if name.isalpha()]


def protein_canvas(sequences: Sequence[str]) -> Canvas:
    """Proteins between their begin and end symbols, as wide as the longest needs; residues are free.

    Raises:
        UsageError: a sequence has a letter that stands for no residue.
    """
    lengths = torch.tensor([len(one) + FRAME for one in sequences])
    tokens = torch.full((len(sequences), int(lengths.max())), PAD_ID)
    for row, one in zip(tokens, sequences, strict=True):
        row[0], row[len(one) + 1] = BEGIN_ID, END_ID
        row[1 : len(one) + 1] = residue_ids(one)
    canvas = Canvas.padded(tokens, lengths)
    position = torch.arange(tokens.shape[1])
    is_free = (position > 0) & (position < lengths[:, None] - 1)
    return Canvas(tokens, is_free, canvas.is_real, canvas.has_padding)


def residue_ids(residues: str) -> Int[Tensor, " l"]:
    """Tokens of a protein without begin and end.

    Raises:
        UsageError: a letter stands for no residue.
    """
    codes = np.frombuffer(residues.encode("ascii", "replace"), dtype=np.uint8)
    ids = _IDS[np.minimum(codes, 127)]
    if (ids < 0).any():
        wrong = residues[int((ids < 0).argmax())]
        raise UsageError(f"a protein is made of the letters {''.join(ALPHABET[4:29])}; got {wrong!r}")
    return torch.from_numpy(ids)


class LengthBuckets:
    """Training batches of proteins of similar length, as a function of the step; each protein once an epoch.

    Proteins are shuffled, put into buckets by length and cut into batches of as many as fit; batches of all buckets
    come in a random order. The last batch of a bucket may be smaller.

    Args:
        sequences: residues.
        max_tokens: positions of a batch, padding, begin and end symbols included.
        width: lengths of one bucket lie within so many residues; padding takes less.
        seed: of the order.

    Raises:
        UsageError: there is no sequence, or one does not fit into a batch.
    """

    def __init__(self, sequences: Sequence[str], *, max_tokens: int = 4096, width: int = 32, seed: int = 0) -> None:
        width = whole_number("width", width, low=1)
        longest = max(map(len, sequences), default=0)
        if not longest or longest + FRAME > max_tokens:
            raise UsageError(
                f"a batch of {max_tokens} tokens holds each of one protein or more; the longest of {len(sequences)} "
                f"has {longest} residues and {FRAME} further symbols: raise max_tokens or leave long ones out"
            )
        self._sequences, self._max_tokens, self._width, self._seed = sequences, max_tokens, width, seed
        self._epoch = -1
        self._batches: list[list[int]] = self._batches_of(0)
        self.num_batches = len(self._batches)

    def batch(self, step: int) -> Canvas:
        """The proteins of a step; the same whenever it is asked."""
        epoch, number = divmod(step, self.num_batches)
        if epoch != self._epoch:
            self._batches, self._epoch = self._batches_of(epoch), epoch
        return protein_canvas([self._sequences[one] for one in self._batches[number]])

    def _batches_of(self, epoch: int) -> list[list[int]]:
        generator = named_generator(self._seed, "protein-batches", epoch)
        buckets: dict[int, list[int]] = {}
        for number in torch.randperm(len(self._sequences), generator=generator).tolist():
            buckets.setdefault((len(self._sequences[number]) - 1) // self._width, []).append(number)
        batches: list[list[int]] = []
        for bucket in sorted(buckets):
            members = buckets[bucket]
            widest = max(len(self._sequences[one]) for one in members)
            size = self._max_tokens // (widest + FRAME)
            batches += [members[begin : begin + size] for begin in range(0, len(members), size)]
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]
