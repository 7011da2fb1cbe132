"""First-order Markov chains: synthetic data with a known exact likelihood. Two chains have a name (``CHAINS``)."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

SUCCESSOR_PROBS = (0.6, 0.25, 0.15)
FLOOR = 0.002


class MarkovChain:
    """A chain in which each symbol has a few likely successors; all others have an equal, small probability.

    Args:
        num_symbols: Number of symbols, without the mask symbol of a diffusion model.
        seed: Random seed of the successors; chains with the same arguments are equal.
        successor_probs: Weights of the likely successors of a symbol, the most likely first; at most ``num_symbols``.
        floor: Weight of every symbol, added to those of the successors; rows are normalised.
    """

    def __init__(
        self,
        num_symbols: int = 32,
        seed: int = 0,
        *,
        successor_probs: Sequence[float] = SUCCESSOR_PROBS,
        floor: float = FLOOR,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        weights = torch.full((num_symbols, num_symbols), floor, dtype=torch.float64)
        for row in weights:
            successors = torch.randperm(num_symbols, generator=generator)[: len(successor_probs)]
            row[successors] += torch.tensor(successor_probs, dtype=torch.float64)
        self.num_symbols = num_symbols
        self.transition: Float[Tensor, "k k"] = weights / weights.sum(-1, keepdim=True)

    @cached_property
    def stationary(self) -> Float[Tensor, " k"]:
        """The stationary distribution, which is also the distribution of the first symbol."""
        probs = torch.full((self.num_symbols,), 1 / self.num_symbols, dtype=torch.float64)
        return probs @ torch.linalg.matrix_power(self.transition, 4096)

    def sample(self, num_sequences: int, length: int, generator: torch.Generator) -> Int[Tensor, "b l"]:
        """Sample sequences that start from the stationary distribution, by inverse CDF in float64."""
        uniforms = torch.rand(length, num_sequences, 1, dtype=torch.float64, generator=generator)
        first_cdf, next_cdf = self.stationary.cumsum(0), self.transition.cumsum(1)
        tokens = torch.empty(num_sequences, length, dtype=torch.long)
        tokens[:, 0] = torch.searchsorted(first_cdf, uniforms[0, :, 0])
        for pos in range(1, length):
            tokens[:, pos] = torch.searchsorted(next_cdf[tokens[:, pos - 1]], uniforms[pos]).squeeze(1)
        return tokens.clamp_(max=self.num_symbols - 1)

    def log_likelihood(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, " b"]:
        """Exact log-probability of each sequence in nats, float64."""
        first = self.stationary.log()[tokens[:, 0]]
        steps = self.transition.log()[tokens[:, :-1], tokens[:, 1:]]
        return first + steps.sum(-1)

    def ngram_probs(self, n: int) -> Float[Tensor, " k_to_the_n"]:
        """Probability of each sequence of ``n`` adjacent symbols, in lexicographic order, float64."""
        probs = self.stationary
        for _ in range(n - 1):
            probs = (probs.view(-1, self.num_symbols, 1) * self.transition).flatten()
        return probs


def exact_chain() -> MarkovChain:
    """The chain ``exact``: every row is a permutation of (0.72, 0.22, 0.05, 0.01).

    It has so few symbols that the distribution of a sampler over short sequences can be enumerated
    (``didi.evaluation.exact``).
    """
    return MarkovChain(4, successor_probs=(0.72, 0.22, 0.05, 0.01), floor=0.0)


MARKOV, EXACT = "markov", "exact"

CHAINS: Mapping[str, Callable[[], MarkovChain]] = {MARKOV: MarkovChain, EXACT: exact_chain}
"""The named chains; each name is also that of a corpus and of a judge."""
