"""Copies of a teacher that read more than the state and the noise level, with new weights for it.

The number of moves of the sampler (``objective.budgets``) begins with no effect. Latent codes
(``objective.latent_codes``) begin with random embeddings: with equal ones all codes would have the same expected
gradient and stay equal.
"""

import copy
from dataclasses import replace

from torch import nn

from didi.errors import UsageError
from didi.models.dit import DiT
from didi.models.layers import Embedding, NoiseEmbedding


def budget_conditioned(network: nn.Module) -> DiT:
    """A copy that can read the number of moves, with new weights for it whose effect is zero.

    Raises:
        UsageError: it is no diffusion transformer, which alone has an input for them.
    """
    if not isinstance(network, DiT):
        raise UsageError(f"the number of moves is read by a DiT; got {type(network).__name__}: leave budgets out")
    found = copy.deepcopy(network)
    found.config = replace(network.config, is_budget_conditioned=True)
    device = next(network.parameters()).device
    found.budget_map = NoiseEmbedding(network.config.cond_dim, is_zero=True).to(device)
    return found


def latent_conditioned(network: nn.Module, num_codes: int, scale: float) -> DiT:
    """A copy that reads a latent code at each position, whose embeddings are drawn from a normal distribution.

    Args:
        network: the teacher.
        num_codes: number C of codes, 2 or more.
        scale: standard deviation of their embeddings over that of the network's token embeddings.

    Raises:
        UsageError: it is no diffusion transformer, which alone has an input for them.
    """
    if not isinstance(network, DiT):
        raise UsageError(f"latent codes are read by a DiT; got {type(network).__name__}: set latent_codes to 0")
    found = copy.deepcopy(network)
    found.config = replace(network.config, num_codes=num_codes)
    tokens = network.vocab_embed.embedding.detach()
    found.code_embed = Embedding(num_codes, network.config.hidden_size).to(tokens.device)
    nn.init.normal_(found.code_embed.embedding, std=scale * float(tokens.std()))
    return found
