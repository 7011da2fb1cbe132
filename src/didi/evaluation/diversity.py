r"""Diversity of a sample set, from token counts alone; a perplexity is only meaningful next to it.

Every entropy here is a plug-in estimate in nats. It is computed as log(n) minus the mean over positions of the
log-count of the token there, which equals :math:`-\sum_v p_v \log p_v` and needs no table as wide as the vocabulary.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def token_entropy(tokens: Int[Tensor, "b l"]) -> Float[Tensor, " b"]:
    """Unigram entropy within each sequence, in nats, float64: between 0 (one token repeated) and log(l) (all distinct).

    MDLM (https://arxiv.org/abs/2406.07524), SDTT and DiDi-Instruct report its mean over sequences.

    Raises:
        ValueError: there are no tokens.
    """
    rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
    counts = _counts(rows * _num_symbols(tokens) + tokens)
    return math.log(tokens.shape[1]) - counts.log().mean(1)


def corpus_entropy(tokens: Int[Tensor, "b l"]) -> float:
    """Unigram entropy of all sequences pooled, in nats; low where all samples are alike, even if each is diverse.

    Raises:
        ValueError: there are no tokens.
    """
    return _pooled_entropy(_ngram_ids(tokens, 1))


def bigram_entropy(tokens: Int[Tensor, "b l"]) -> float:
    """Entropy of the adjacent pairs of all sequences pooled, in nats.

    Raises:
        ValueError: sequences are shorter than 2.
    """
    return _pooled_entropy(_ngram_ids(tokens, 2))


def distinct_n(tokens: Int[Tensor, "b l"], n: int = 4) -> float:
    """Share of distinct n-grams among all n-grams of the set, in (0, 1] (https://arxiv.org/abs/1510.03055).

    It falls with the size of the set, so compare only sets of one size.

    Raises:
        ValueError: sequences are shorter than ``n``, or ``n`` is not positive.
    """
    ids = _ngram_ids(tokens, n)
    return ids.unique().numel() / ids.numel()


def sequence_repetition(tokens: Int[Tensor, "b l"], n: int = 4) -> Float[Tensor, " b"]:
    """Share of the n-grams of each sequence that stood in it before, in [0, 1): seq-rep-n of Welleck et al. 2019.

    Source: https://arxiv.org/abs/1908.04319, Eq. 10.

    Raises:
        ValueError: sequences are shorter than ``n``, or ``n`` is not positive.
    """
    ids = _ngram_ids(tokens, n).sort(1).values
    return (ids[:, 1:] == ids[:, :-1]).double().sum(1) / ids.shape[1]


def self_bleu(tokens: Int[Tensor, "b l"], max_n: int = 4) -> float:
    """Mean BLEU of each sequence against all others, in (0, 1]: high where samples are alike (Texygen).

    Precisions of 1- to ``max_n``-grams, clipped at the largest count in any one other sequence, are averaged
    geometrically; one without a match counts as 0.1 matches. Sequences are equally long: no brevity penalty.
    It grows with the size of the set, so compare only sets of one size.

    Source: https://arxiv.org/abs/1802.01886; smoothing "method 1" of https://aclanthology.org/W14-3346.

    Raises:
        ValueError: there is only one sequence, or sequences are shorter than ``max_n``.
    """
    if len(tokens) < 2:
        raise ValueError(f"self-BLEU compares two sequences or more; got {len(tokens)}")
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for n in range(1, max_n + 1):
        ids = _ngram_ids(tokens, n).cpu()
        rows = torch.arange(len(ids)).unsqueeze(1).expand_as(ids)
        # One entry for each (n-gram, sequence), grouped by n-gram; within a group the largest count comes first.
        pairs, counts = torch.stack([ids.flatten(), rows.flatten()], 1).unique(dim=0, return_counts=True)
        order = (pairs[:, 0] * (ids.shape[1] + 1) + ids.shape[1] - counts).argsort(stable=True)
        gram, row, count = pairs[order, 0], pairs[order, 1], counts[order]
        is_same = gram[1:] == gram[:-1]
        first = (~F.pad(is_same, (1, 0))).nonzero().flatten()  # entry with the largest count of each n-gram
        second = F.pad(torch.where(is_same, count[1:], 0), (0, 1))[first]
        group = F.pad(~is_same, (1, 0)).cumsum(0)  # number of the n-gram of each entry
        is_largest = torch.arange(len(gram)) == first[group]
        elsewhere = torch.where(is_largest, second[group], count[first][group])  # largest count in another sequence
        matches = torch.zeros(len(tokens), dtype=torch.float64).index_add_(
            0, row, torch.minimum(count, elsewhere).double()
        )
        total += (torch.where(matches > 0, matches, 0.1) / ids.shape[1]).log()
    return float((total / max_n).exp().mean())


def _ngram_ids(tokens: Int[Tensor, "b l"], n: int) -> Int[Tensor, "b m"]:
    """An id for each n-gram, equal for equal n-grams; ids are renumbered for each length, so that none overflows."""
    num_symbols = _num_symbols(tokens)
    if not 1 <= n <= tokens.shape[1]:
        raise ValueError(f"n must lie in [1, {tokens.shape[1]}], the length of the sequences; got {n}")
    ids = tokens.long()
    for step in range(1, n):
        ids = (ids[:, :-1] * num_symbols + tokens[:, step:]).unique(return_inverse=True)[1]
    return ids


def _pooled_entropy(ids: Int[Tensor, "b m"]) -> float:
    return math.log(ids.numel()) - float(_counts(ids).log().mean())


def _counts(keys: Int[Tensor, "b m"]) -> Float[Tensor, "b m"]:
    """How often the key at each position occurs in the whole tensor."""
    _, inverse, counts = keys.unique(return_inverse=True, return_counts=True)
    return counts.double()[inverse]


def _num_symbols(tokens: Int[Tensor, "b l"]) -> int:
    if not tokens.numel():
        raise ValueError(f"diversity is measured on at least one token; got tokens of shape {tuple(tokens.shape)}")
    return int(tokens.max()) + 1
