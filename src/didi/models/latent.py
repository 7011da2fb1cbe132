r"""Latent codes: a move of few-step masked diffusion as a mixture of product distributions.

This is a method of this library, derived from Di4C. The tokens of a move are independent given the input of the
network. A student with latent codes also reads a code at each position. Codes are drawn uniformly for each sequence and
each move, so that a move has the distribution

.. math:: p(z_s | z_t) = E_c \prod_l p_\theta(z_s^l | z_t, c), \qquad c^l \sim U\{0, .., C - 1\}.

Di4C (Hayakawa et al. 2024, https://arxiv.org/abs/2410.08709) has a single latent for each sequence. In the fully masked
state, all positions of a transformer with relative positions are equivalent. With a single latent the first move draws
all tokens of a sequence independently from one distribution; with a code for each position the distributions differ.
"""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor


def num_codes(network: Any) -> int:
    """Number C of latent codes of a network; 0 for a network without codes."""
    return int(getattr(getattr(network, "config", None), "num_codes", 0))


def codes_from(uniforms: Float[Tensor, "*b l"], num: int) -> Int[Tensor, "*b l"]:
    """A draw of the code of each position.

    Args:
        uniforms: numbers in [0, 1).
        num: number C of codes.
    """
    return (uniforms * num).long()


def features_with(
    network: Any,
    inputs: Int[Tensor, "b l"],
    sigma: Float[Tensor, " b"] | None = None,
    attention_mask: Bool[Tensor, "b l"] | None = None,
    codes: Int[Tensor, "b l"] | None = None,
) -> Float[Tensor, "b l d"]:
    """``Denoiser.features`` of a network with or without latent codes.

    Args:
        network: a denoiser.
        inputs: token ids.
        sigma: see ``Denoiser.features``.
        attention_mask: see ``Denoiser.features``.
        codes: latent code of each position; None for a network without codes.
    """
    arguments = (inputs, sigma, attention_mask)
    features: Tensor = network.features(*arguments) if codes is None else network.features(*arguments, codes)
    return features
