"""Training batches of proteins of different lengths; see ``source.Source``."""

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from didi.data.protein import ProteinData, prepare_proteins, protein_tokenizer
from didi.data.protein_batches import FRAME, LengthBuckets, canvas_of_rows, protein_rows
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.models.proteins import ALPHABET, MASK_ID, RESIDUES

SHORTEST = 50
"""Smallest number of residues of a training protein; shorter sequences in databases are mostly fragments."""


class ProteinSource:
    """Proteins in the vocabulary of ESM-2; the proteins of a batch are of similar length.

    Args:
        data: training, validation and test proteins.
        seed: seed of the batches.
        width: see ``LengthBuckets``.
    """

    vocab_size = len(ALPHABET)
    mask_id = MASK_ID
    has_lengths = True

    def __init__(self, data: ProteinData, seed: int, width: int = 32) -> None:
        self.tokenizer: Tokenizer = protein_tokenizer()
        self.validation, self.test = protein_rows(data.validation), protein_rows(data.test)
        means = [sum(map(len, members)) / max(1, len(members)) for members in data.train]
        self.mean_length = sum(means) / max(1, len(means))
        self._train, self._seed, self._width = data.train, seed, width
        self._buckets: dict[int, LengthBuckets] = {}

    def batch(self, step: int, batch_size: int) -> Int[Tensor, "b l"]:
        """See ``Source.batch``; rows are padded to the longest protein."""
        if batch_size not in self._buckets:
            self._buckets[batch_size] = LengthBuckets(
                self._train, batch_size=batch_size, width=self._width, seed=self._seed
            )
        return self._buckets[batch_size].batch(step)

    def canvas(self, rows: Int[Tensor, "b l"]) -> Canvas:
        """See ``Source.canvas``: residues are free, begin and end symbols are given."""
        return canvas_of_rows(rows)


def open_proteins(corpus: str, *, length: int, tokenizer: Tokenizer | None, seed: int) -> ProteinSource:
    """The source of a corpus of proteins.

    Args:
        corpus: see ``protein.prepare_proteins``.
        length: largest number of positions of a protein, begin and end symbols included; longer proteins are left out.
        tokenizer: tokenizer of the networks; None for that of ESM-2.
        seed: seed of the order of the batches.

    Raises:
        UsageError: the networks have other tokens than ESM-2, or no protein is left.
        DidiError: the corpus cannot be fetched, or mmseqs2 is missing.
    """
    if length < SHORTEST + FRAME:
        raise UsageError(
            f"data.length is {SHORTEST + FRAME} or more for proteins, which have {SHORTEST} residues or more and "
            f"{FRAME} further symbols; got {length}: raise it"
        )
    if tokenizer is not None and tokenizer.get_vocab() != protein_tokenizer().get_vocab():
        raise UsageError(
            f"networks for the corpus {corpus} have the tokens of ESM-2; got another tokenizer: choose a teacher of "
            "didi pretrain swissprot or didi convert dplm, or leave data.tokenizer out"
        )
    return ProteinSource(prepare_proteins(corpus, min_length=SHORTEST, max_length=length - FRAME), seed)


def random_source(length: int, num_proteins: int = 256) -> ProteinSource:
    """Random proteins of nearly ``length`` positions, for uses where only shapes matter; batches have padding."""
    generator = named_generator(0, "random-proteins")
    letters = torch.randint(len(RESIDUES), (num_proteins, length - FRAME), generator=generator)
    proteins = ["".join(RESIDUES[index] for index in row) for row in letters.tolist()]
    uneven = [residues[: len(residues) - number % 2] for number, residues in enumerate(proteins)]
    return ProteinSource(ProteinData([[protein] for protein in uneven], uneven[:1], uneven[:1]), seed=0, width=length)
