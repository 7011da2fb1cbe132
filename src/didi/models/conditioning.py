"""Copies of a teacher with an additional input, and new weights for this input.

The new weights for the number of moves of the sampler (``objective.budgets``) are zero, so that it has no effect at the
start. Latent codes (``objective.latent_codes``) start with random embeddings: if all were equal, they would have the
same expected gradient and stay equal.
"""

import copy
from dataclasses import replace

from torch import nn

from didi.errors import UsageError
from didi.models.dit import DiT
from didi.models.layers import Embedding, NoiseEmbedding


def budget_conditioned(network: nn.Module) -> DiT:
    """A copy that can read the number of moves, which has no effect at the start.

    Raises:
        UsageError: the network is not a ``DiT``, the only network with this input.
    """
    if not isinstance(network, DiT):
        raise UsageError(f"the number of moves is read by a DiT; got {type(network).__name__}: leave budgets out")
    conditioned = copy.deepcopy(network)
    conditioned.config = replace(network.config, is_budget_conditioned=True)
    device = next(network.parameters()).device
    conditioned.budget_map = NoiseEmbedding(network.config.cond_dim, is_zero=True).to(device)
    return conditioned


def latent_conditioned(network: nn.Module, num_codes: int, scale: float) -> DiT:
    """A copy that reads a latent code at each position; the embeddings of codes are drawn from a normal distribution.

    Args:
        network: the teacher.
        num_codes: number C of codes, 2 or more.
        scale: ratio of the standard deviations of code embeddings and token embeddings.

    Raises:
        UsageError: the network is not a ``DiT``, the only network with this input.
    """
    if not isinstance(network, DiT):
        raise UsageError(f"latent codes are read by a DiT; got {type(network).__name__}: set latent_codes to 0")
    conditioned = copy.deepcopy(network)
    conditioned.config = replace(network.config, num_codes=num_codes)
    tokens = network.vocab_embed.embedding.detach()
    conditioned.code_embed = Embedding(num_codes, network.config.hidden_size).to(tokens.device)
    nn.init.normal_(conditioned.code_embed.embedding, std=scale * float(tokens.std()))
    return conditioned
