r"""Divergences of adjacent pairs and triples of symbols from a Markov chain, with bias corrections.

``p`` is the distribution of the n-grams of the samples, pooled over positions (the chain is stationary), and ``q`` that
of the chain. With counts c of N n-grams in total, the estimates are

- :math:`KL(p \| q)`: :math:`\sum_a (c_a / N) \log(c_a / N q_a)`, the plug-in estimate, too large by about the number of
  n-grams that occur over 2 N;
- :math:`KL(q \| p)`: :math:`\sum_a q_a (\log q_a + \log N - \psi(c_a + 1))`, in which an n-gram that does not occur
  has a finite logarithm: psi(c + 1) is the posterior mean of the log-rate of c events under a flat prior, and for a
  Poisson count of mean m its mean is too large by E1(m) only, which is 0.2 at m = 1 and 0.0001 at m = 7.

Both are corrected by the jackknife over sequences (Quenouille 1956; Miller 1974), which does not assume that the
n-grams of a sequence are independent. With triples most n-grams are rare and a bias of a higher order remains, so
KL(p || q) is extrapolated once more from halves of the samples: twice the estimate from all sequences minus the mean
of the estimates from four halves. Finally the mean estimate over ``NUM_NULL`` sample sets of the chain, of equal size
and length, is subtracted, so that the estimate is 0 on average for samples of the chain. For other samples some bias
remains; docs/results/divergences.md has it. The jackknife intervals cover the sampling error only, not this bias. With
fewer than ``MIN_NGRAMS_PER_CELL`` n-grams a cell the bias exceeds the sampling error, and no intervals are given.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.data.markov import MarkovChain
from didi.diffusion.noise import named_generator
from didi.evaluation.frontier import NAN_INTERVAL, Interval

Z_95 = 1.959964
MIN_SEQUENCES = 4  # two in each half of the samples, for the jackknife
MIN_NGRAMS_PER_CELL = 30  # observed n-grams for each possible n-gram
NUM_NULL = 8  # sample sets of the chain from which the remaining bias is estimated


@dataclass(frozen=True)
class NgramDivergence:
    """Divergences between the n-grams of a sample set and those of a chain.

    Attributes:
        kl: KL(samples || chain) in nats per n-gram; it can be slightly negative, since its bias is removed.
        kl_ci: Its 95% jackknife interval over sequences, of the sampling error alone; NaN with fewer than
            ``MIN_NGRAMS_PER_CELL`` n-grams a cell.
        reverse_kl: KL(chain || samples) in nats per n-gram.
        reverse_kl_ci: The 95% jackknife interval of ``reverse_kl``, with the same limits.
    """

    kl: float
    kl_ci: Interval
    reverse_kl: float
    reverse_kl_ci: Interval


@dataclass(frozen=True)
class _Estimate:
    value: float
    error: float

    @property
    def ci(self) -> Interval:
        return self.value - Z_95 * self.error, self.value + Z_95 * self.error

    def minus(self, other: "_Estimate") -> "_Estimate":
        return _Estimate(self.value - other.value, math.hypot(self.error, other.error))


def ngram_divergence(tokens: Int[Tensor, "b l"], chain: MarkovChain, n: int) -> NgramDivergence:
    """Divergences between the n-grams of samples and those of a chain.

    Args:
        tokens: Samples; ``l`` is ``n`` or more.
        chain: The reference distribution.
        n: 2 for adjacent pairs, 3 for triples; memory grows as ``num_symbols ** n``.

    Returns:
        The divergences; all NaN for fewer than 4 sequences.

    Raises:
        ValueError: ``n`` is not in [1, l], or a token is not one of the chain's symbols.
    """
    if not 1 <= n <= tokens.shape[1]:
        raise ValueError(f"n must lie in [1, {tokens.shape[1]}], the length of the sequences; got {n}")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < chain.num_symbols:
        raise ValueError(f"tokens must be symbols of the chain, 0 to {chain.num_symbols - 1}; got {int(tokens.max())}")
    if len(tokens) < MIN_SEQUENCES:
        return NgramDivergence(math.nan, NAN_INTERVAL, math.nan, NAN_INTERVAL)
    estimates, biases = _estimates(tokens.cpu(), chain, n), _null(chain, n, *tokens.shape)
    forward, reverse = (estimate.minus(bias) for estimate, bias in zip(estimates, biases, strict=True))
    if tokens.shape[0] * (tokens.shape[1] - n + 1) < MIN_NGRAMS_PER_CELL * chain.num_symbols**n:
        return NgramDivergence(forward.value, NAN_INTERVAL, reverse.value, NAN_INTERVAL)
    return NgramDivergence(forward.value, forward.ci, reverse.value, reverse.ci)


def _estimates(tokens: Int[Tensor, "b l"], chain: MarkovChain, n: int) -> tuple[_Estimate, _Estimate]:
    """Estimates of KL(samples || chain) and KL(chain || samples), before the estimates for the chain are subtracted."""
    ids, q = _ngram_ids(tokens, chain.num_symbols, n), chain.ngram_probs(n)
    forward = _forward(ids, q)
    if n > 2:
        halves = (ids[: len(ids) // 2], ids[len(ids) // 2 :], ids[::2], ids[1::2])
        mean = math.fsum(_forward(half, q).value for half in halves) / len(halves)
        forward = _Estimate(2 * forward.value - mean, forward.error)
    return forward, _reverse(ids, q)


@lru_cache(maxsize=64)
def _null(chain: MarkovChain, n: int, num_sequences: int, length: int) -> tuple[_Estimate, _Estimate]:
    """Mean and standard error of both estimates over sample sets of the chain, whose true divergence is 0."""
    generator = named_generator(0, "ngrams")
    sets = [_estimates(chain.sample(num_sequences, length, generator), chain, n) for _ in range(NUM_NULL)]
    values = torch.tensor([[estimate.value for estimate in pair] for pair in sets], dtype=torch.float64)
    means, errors = values.mean(0).tolist(), (values.std(0) / math.sqrt(NUM_NULL)).tolist()
    return _Estimate(means[0], errors[0]), _Estimate(means[1], errors[1])


def _forward(ids: Int[Tensor, "b m"], q: Float[Tensor, " k"]) -> _Estimate:
    """KL(samples || chain)."""
    log_q = q.log()[ids].sum(1)
    total, without = _sums(ids, len(q), lambda counts, _: torch.special.xlogy(counts, counts))
    num, left = ids.numel(), ids.numel() - ids.shape[1]
    value = (total - log_q.sum()) / num - math.log(num)
    return _jackknife(value, (without - (log_q.sum() - log_q)) / left - math.log(left))


def _reverse(ids: Int[Tensor, "b m"], q: Float[Tensor, " k"]) -> _Estimate:
    """KL(chain || samples)."""
    total, without = _sums(ids, len(q), lambda counts, cells: q[cells] * torch.special.digamma(counts + 1))
    negative_entropy = torch.special.xlogy(q, q).sum()
    num, left = ids.numel(), ids.numel() - ids.shape[1]
    return _jackknife(negative_entropy - total + math.log(num), negative_entropy - without + math.log(left))


def _sums(
    ids: Int[Tensor, "b m"],
    num_cells: int,
    term: Callable[[Float[Tensor, " c"], Int[Tensor, " c"]], Float[Tensor, " c"]],
) -> tuple[Float[Tensor, ""], Float[Tensor, " b"]]:
    """Sum over all n-grams of ``term(count, n-gram)``, and the same sum with each sequence left out in turn."""
    counts = torch.bincount(ids.flatten(), minlength=num_cells).double()
    total = term(counts, torch.arange(num_cells)).sum()
    ordered = ids.sort(1).values  # sorted, so that equal n-grams of a sequence are adjacent and can be counted
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    row, _ = is_first.nonzero(as_tuple=True)
    cells = ordered[is_first]
    in_sequence = torch.bincount(is_first.flatten().cumsum(0) - 1, minlength=len(cells)).double()
    change = term(counts[cells] - in_sequence, cells) - term(counts[cells], cells)
    return total, total + torch.zeros(len(ids), dtype=torch.float64).index_add_(0, row, change)


def _jackknife(value: Float[Tensor, ""], without: Float[Tensor, " b"]) -> _Estimate:
    """Bias-corrected value and standard error from the leave-one-out values."""
    num = len(without)
    corrected = num * value - (num - 1) * without.mean()
    return _Estimate(float(corrected), math.sqrt((num - 1) * float(without.var(correction=0))))


def _ngram_ids(tokens: Int[Tensor, "b l"], num_symbols: int, n: int) -> Int[Tensor, "b m"]:
    """The n-grams as numbers in base ``num_symbols``, as ``MarkovChain.ngram_probs`` orders them."""
    num = tokens.shape[1] - n + 1
    ids = tokens[:, :num].long()
    for step in range(1, n):
        ids = ids * num_symbols + tokens[:, step : step + num]
    return ids
