r"""Diversity of a sample set, from token counts alone: the figure that no perplexity may be read without.

Every entropy here is a plug-in estimate in nats. It is computed as log(n) minus the mean over positions of the
log-count of the token there, which equals :math:`-\sum_v p_v \log p_v` and needs no table as wide as the vocabulary.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def token_entropy(tokens: Int[Tensor, "b l"]) -> Float[Tensor, " b"]:
    """Unigram entropy within each sequence, in nats, float64: between 0 (one token repeated) and log(l) (all distinct).

    This is the entropy that MDLM (https://arxiv.org/abs/2406.07524), SDTT and DiDi-Instruct report, as its mean.
    """
    rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
    counts = _counts(rows * _num_symbols(tokens) + tokens)
    return math.log(tokens.shape[1]) - counts.log().mean(1)


def corpus_entropy(tokens: Int[Tensor, "b l"]) -> float:
    """Unigram entropy of all sequences pooled, in nats: falls when every sample is diverse but all are alike."""
    return _pooled_entropy(tokens)


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


def _ngram_ids(tokens: Int[Tensor, "b l"], n: int) -> Int[Tensor, "b m"]:
    """A number for each n-gram, equal where the n-grams are; renumbered at each step, so that nothing overflows."""
    if not 1 <= n <= tokens.shape[1]:
        raise ValueError(f"n must lie in [1, {tokens.shape[1]}], the length of the sequences; got {n}")
    num_symbols = _num_symbols(tokens)
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
        raise ValueError(f"entropies need at least one token; got tokens of shape {tuple(tokens.shape)}")
    return int(tokens.max()) + 1
