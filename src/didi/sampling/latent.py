"""Latent codes of a move (``models.latent``), drawn from the random numbers of each sequence."""

import torch
from jaxtyping import Int
from torch import Tensor

from didi.diffusion.noise import SequenceNoise
from didi.models.denoiser import Denoiser
from didi.models.latent import codes_from, num_codes


def drawn_codes(
    denoiser: Denoiser, noise: SequenceNoise, length: int, device: torch.device
) -> Int[Tensor, "b l"] | None:
    """A code for each position of each sequence; None for a network without codes, for which no number is drawn.

    Samplers draw codes for every sequence in every move, even if they are not needed, so that the codes of a sequence
    do not depend on its batch.

    Args:
        denoiser: the network.
        noise: random numbers of the sequences; none are drawn at padding.
        length: number of positions, padding included.
        device: device of the result.
    """
    num = num_codes(denoiser)
    if not num:
        return None
    return codes_from(noise.uniforms(length, positions=0, device=device), num)
