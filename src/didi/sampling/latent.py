"""The latent codes of a move (``models.latent``), from the random numbers of each sequence."""

import torch
from jaxtyping import Int
from torch import Tensor

from didi.diffusion.noise import SequenceNoise
from didi.models.denoiser import Denoiser
from didi.models.latent import codes_from, num_codes


def drawn_codes(
    denoiser: Denoiser, noise: SequenceNoise, length: int, device: torch.device
) -> Int[Tensor, "b l"] | None:
    """A code for each position of each sequence; None, and no number drawn, for a network that reads none.

    A sampler draws them in every move, needed or not, so that those of a sequence do not depend on its batch.

    Args:
        denoiser: the network.
        noise: of the sequences; draws none at their padding.
        length: positions, padding included.
        device: where the codes are wanted.
    """
    number = num_codes(denoiser)
    if not number:
        return None
    return codes_from(noise.uniforms(length, positions=0, device=device), number)
