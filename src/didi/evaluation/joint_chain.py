"""A likelihood fitted to samples that starts from a Markov chain: a transition table plus the logits of a small GPT-2.

A sampler of few moves draws some neighbours independently of each other, so that all rare transitions are much more
frequent than in the chain. A network learns this slowly; a table fits it directly. The prior of the table is a mixture
of the chain and the symbol frequencies of the samples, and is combined with the counts of transitions as a Dirichlet
prior. The weights are chosen on held-out sequences, from a grid that includes the chain itself.
"""

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from didi.data.markov import MarkovChain
from didi.diffusion.noise import derive_seed
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM

MIXED = (0.0, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.25, 0.5)
"""Candidate weights of the symbol frequencies; the chain has the remaining weight."""
PRIOR_COUNTS = (10.0, 30.0, 100.0, 300.0, 1000.0, float("inf"))
"""Candidate strengths of the prior, in pseudo-counts per symbol; with infinity, the counts have no influence."""


class ChainFit(nn.Module):
    """Next-symbol distribution softmax(log table + logits of a GPT-2); initially that of the chain, with zero logits.

    Args:
        chain: The reference distribution.
        length: Symbols in a sequence.
        seed: Random seed of the network's weights.
    """

    def __init__(self, chain: MarkovChain, length: int, seed: int) -> None:
        super().__init__()
        self.num_symbols = num = chain.num_symbols
        config = AutoregressiveConfig(
            vocab_size=num + 1, mask_id=num, length=length, hidden_size=64, num_blocks=2, num_heads=4, dropout=0.1
        )
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, "joint-network"))
            self.network = AutoregressiveLM(config)
        nn.init.zeros_(self.network.gpt2.lm_head.weight)
        # The last row is the distribution of the first symbol of a sequence, whose predecessor is [MASK].
        self.log_table = nn.Buffer(torch.cat([chain.transition, chain.stationary[None]]).log())

    def nll(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """Negative log-likelihood of each token in nats."""
        previous = F.pad(tokens[:, :-1], (1, 0), value=self.num_symbols)
        logits = self.network(previous)[..., : self.num_symbols] + self.log_table.float()[previous]
        return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")

    def start(self, train: Int[Tensor, "n l"], stop: Int[Tensor, "m l"]) -> None:
        """Fit tables to ``train`` and keep the table with the highest likelihood on ``stop``."""
        counts, held_out = (_transitions(tokens, self.num_symbols) for tokens in (train, stop))
        frequencies = (counts.sum(0) + 1) / (counts.sum() + self.num_symbols)
        chain = self.log_table.exp()
        tables = []
        for mixed, prior_count in itertools.product(MIXED, PRIOR_COUNTS):
            prior = (1 - mixed) * chain + mixed * frequencies
            weight = prior_count / (counts.sum(1, keepdim=True) + prior_count) if prior_count < torch.inf else 1.0
            empirical = counts / counts.sum(1, keepdim=True).clamp_min(1)
            tables.append(weight * prior + (1 - weight) * empirical)
        log_tables = (table.log() for table in tables)
        self.log_table.copy_(max(log_tables, key=lambda log_table: float((held_out * log_table).sum())))


def _transitions(tokens: Int[Tensor, "b l"], num_symbols: int) -> Float[Tensor, "a k"]:
    """Counts of transitions; the last row counts the first symbols of the sequences."""
    previous = F.pad(tokens[:, :-1], (1, 0), value=num_symbols)
    cells = (previous * num_symbols + tokens).flatten()
    return torch.bincount(cells, minlength=(num_symbols + 1) * num_symbols).double().view(-1, num_symbols)
