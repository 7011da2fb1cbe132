"""Measures computed from protein sequences alone, without a model of their structure."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.data.mmseqs import clusters_of, nearest_identities
from didi.errors import UsageError
from didi.models.proteins import ALPHABET

PAIRS_TOGETHER = 4096
"""Number of pairs whose distances are computed together; bounds the memory."""


def residue_entropies(sequences: Sequence[str]) -> Float[Tensor, " n"]:
    """Entropy of the residues within each sequence in nats, float64; at most log(20) for standard residues.

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
    """Share of the sequences that are equal to an earlier one, in [0, 1).

    Raises:
        UsageError: there is no sequence, or one is empty.
    """
    return 1 - len(set(_checked(sequences))) / len(sequences)


def cluster_diversity(sequences: Sequence[str], *, identity: float = 0.5) -> float:
    """Number of clusters of mmseqs2 divided by the number of sequences, in (0, 1].

    It falls with the size of the set, so compare only sets of equal size. Repetitive sets, such as poly-alanine, are
    counted too.

    Args:
        sequences: residues.
        identity: smallest sequence identity within a cluster, in (0, 1].

    Raises:
        UsageError: there is no sequence, or one is empty.
        DidiError: mmseqs2 is missing or fails.
    """
    clusters = clusters_of(_checked(sequences), identity=identity, masks_repeats=False)
    return len(set(clusters)) / len(sequences)


def pair_distances(sequences: Sequence[str]) -> Float[Tensor, " n"]:
    """Values, float64, whose mean is the mean distance of two sequences of the set, 0 to 1.

    The distance is the edit distance (Levenshtein) divided by the length of the longer sequence. With d_i the mean
    distance of sequence i to the others, the values are 2 d_i - mean(d): the variance of their mean is that of the mean
    over pairs up to terms of order 1 / n^2 (Hoeffding 1948), since every pair has two random sequences. So bootstrap
    intervals of their mean hold for the mean distance. NaN for a single sequence.

    Raises:
        UsageError: there is no sequence, or one is empty.
    """
    num, first, second = len(_checked(sequences)), *torch.triu_indices(len(sequences), len(sequences), 1)
    distances = torch.zeros(num, num, dtype=torch.float64)
    parts = zip(first.split(PAIRS_TOGETHER), second.split(PAIRS_TOGETHER), strict=True)
    distances[first, second] = torch.cat([_edit_distances(sequences, *part) for part in parts])
    means = (distances + distances.T).sum(1) / (num - 1 if num > 1 else math.nan)
    return 2 * means - means.mean()


def _edit_distances(
    sequences: Sequence[str], first: Int[Tensor, " p"], second: Int[Tensor, " p"]
) -> Float[Tensor, " p"]:
    """Edit distances of pairs of sequences, over the longer length; all pairs share each row of the dynamic program."""
    lengths = torch.tensor([len(residues) for residues in sequences])
    codes = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int32)
    for code, residues in zip(codes, sequences, strict=True):
        code[: len(residues)] = torch.tensor(list(residues.encode()), dtype=torch.int32)
    columns = torch.arange(codes.shape[1] + 1, dtype=torch.int32)
    sources, targets = codes[first], codes[second]
    row, distances = columns.repeat(len(first), 1), torch.zeros(len(first), dtype=torch.int32)
    for prefix in range(1, codes.shape[1] + 1):
        is_other = sources[:, prefix - 1 : prefix] != targets
        without_insertions = torch.cat([row[:, :1] + 1, torch.minimum(row[:, 1:] + 1, row[:, :-1] + is_other)], dim=1)
        row = (without_insertions - columns).cummin(1).values + columns
        distances = torch.where(lengths[first] == prefix, row.gather(1, lengths[second, None]).squeeze(1), distances)
    return distances.double() / torch.maximum(lengths[first], lengths[second])


def nearest_training_identities(sequences: Sequence[str], training: Sequence[str]) -> Float[Tensor, " n"]:
    """Identity of each sequence with the nearest training sequence, in [0, 1], float64; see ``nearest_identities``.

    A lower identity means a more novel sequence. Random sequences are novel too, so report it with a judge's score.

    Raises:
        UsageError: there is no sequence, or one is empty.
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
