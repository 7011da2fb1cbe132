r"""Latent codes: a move of few-step masked diffusion as a mixture of products (ours, after Di4C).

Given its input a network draws the tokens of a move independently of each other. A student with latent codes reads a
code at each position as well, drawn uniformly and anew for each sequence and each move, so that a move is

.. math:: p(z_s | z_t) = E_c \prod_l p_\theta(z_s^l | z_t, c), \qquad c^l \sim U\{0, .., C - 1\}.

Di4C (Hayakawa et al. 2024, https://arxiv.org/abs/2410.08709) has a single latent for a sequence. In the state of masks
alone all positions of a transformer with relative positions are alike: with a single latent the first move draws the
tokens of a sequence independently from one distribution, while codes of their own tell the positions apart.
"""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor


def num_codes(network: Any) -> int:
    """Number C of latent codes that a network reads, 0 for none."""
    return int(getattr(getattr(network, "config", None), "num_codes", 0))


def codes_from(uniforms: Float[Tensor, "*b l"], number: int) -> Int[Tensor, "*b l"]:
    """A draw of the code of each position.

    Args:
        uniforms: numbers in [0, 1).
        number: number C of codes.
    """
    return (uniforms * number).long()


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
        codes: one for each position; None for a network that reads none.
    """
    arguments = (inputs, sigma, attention_mask)
    found: Tensor = network.features(*arguments) if codes is None else network.features(*arguments, codes)
    return found
