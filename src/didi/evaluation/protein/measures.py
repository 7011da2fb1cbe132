"""Measures computed from protein sequences alone, without a model of their structure."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from didi.data.mmseqs import clusters_of, nearest_identities
from didi.errors import UsageError
from didi.models.proteins import ALPHABET

NOT_REPETITIVE = "RGTWQHVYDKNCEIMPSLFAWDRYKHGTQVNEMCIPFLSARWEYHDGKTNQVMICPLSFAWHRDEYTKGN"
"""A sequence without repeats that is similar to no natural protein."""


def residue_entropies(sequences: Sequence[str]) -> Float[Tensor, " n"]:
    """Entropy of the residues within each sequence in nats, float64: 0 for one repeated residue, log(20) at most.

    Raises:
        UsageError: a sequence is empty.
    """
    return torch.tensor([_entropy(Counter(residues)) for residues in _checked(sequences)], dtype=torch.float64)


def corpus_residue_entropy(sequences: Sequence[str]) -> float:
    """Entropy of the residues of all sequences pooled, in nats.

    Raises:
        UsageError: there is no sequence, or one is empty.
    """
    return _entropy(Counter("".join(_checked(sequences))))


def duplicate_share(sequences: Sequence[str]) -> float:
    """Share of the sequences that are equal to an earlier one, in [0, 1)."""
    return 1 - len(set(_checked(sequences))) / len(sequences)


def cluster_diversity(sequences: Sequence[str], *, identity: float = 0.5) -> float:
    """Number of clusters of mmseqs2 divided by the number of sequences, in (0, 1].

    It falls with the size of the set, so compare only sets of equal size. Repetitive sets, such as poly-alanine, are
    counted too.

    Args:
        sequences: residues.
        identity: smallest sequence identity within a cluster, in (0, 1].

    Raises:
        DidiError: mmseqs2 is missing or fails.
    """
    # The program fails on a set in which every sequence is repetitive; with another sequence it does not.
    clusters = clusters_of([*_checked(sequences), NOT_REPETITIVE], identity=identity)
    return len(set(clusters[:-1])) / len(sequences)


def nearest_training_identities(sequences: Sequence[str], training: Sequence[str]) -> Float[Tensor, " n"]:
    """Identity of each sequence with the nearest training sequence, in [0, 1], float64; see ``nearest_identities``.

    A lower identity means a more novel sequence. Random sequences are novel too, so report it with a judge's score.

    Raises:
        DidiError: mmseqs2 is missing or fails.
    """
    return torch.tensor(nearest_identities(_checked(sequences), training), dtype=torch.float64)


def nearest_identities_of_sets(sets: Sequence[Sequence[str]], training: Sequence[str]) -> list[Float[Tensor, " _"]]:
    """``nearest_training_identities`` of each of several sets by one search, in which equal sequences are one query.

    Raises:
        UsageError: there is no sequence, or one is empty.
        DidiError: mmseqs2 is missing or fails.
    """
    different = list(dict.fromkeys(chain.from_iterable(sets)))
    known = dict(zip(different, nearest_training_identities(different, training).tolist(), strict=True))
    return [torch.tensor([known[sequence] for sequence in sequences], dtype=torch.float64) for sequences in sets]


def residue_frequencies(sequences: Sequence[str]) -> dict[str, float]:
    """Share of each letter in the pooled residues, with one added to every count so that none is 0.

    Args:
        sequences: residues; letters of the alphabet of ESM-2.

    Returns:
        Shares in (0, 1) that sum to 1, for the 20 standard residues and the further letters of ESM-2.
    """
    letters = [name for name in ALPHABET if name.isalpha()]
    counts = Counter(letters) + Counter("".join(sequences))
    total = sum(counts[letter] for letter in letters)
    return {letter: counts[letter] / total for letter in letters}


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    return -sum(num / total * math.log(num / total) for num in counts.values()) + 0.0  # + 0.0: no negative zero


def _checked(sequences: Sequence[str]) -> Sequence[str]:
    if not sequences or not all(sequences):
        raise UsageError(f"measures need one protein or more, none of them empty; got {len(sequences)} sequences")
    return sequences
