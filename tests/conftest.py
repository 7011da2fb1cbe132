"""Shapes and dtypes are checked at run time in tests; tiny networks whose weights are not the zeros they start as."""

import typing

import jaxtyping

typing.Protocol._is_runtime_protocol = True  # beartype checks a protocol by isinstance
jaxtyping.install_import_hook("didi", "beartype.beartype")  # before anything imports didi

import pytest  # noqa: E402
import torch  # noqa: E402

from didi.models.discriminator import Discriminator  # noqa: E402
from didi.models.dit import DiT, DiTConfig  # noqa: E402

torch.set_num_threads(1)


def randomise(network, seed, scale=0.5):
    """Normal weights everywhere: a fresh DiT has a zero head and zero modulations, and so hides most mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.fixture(scope="session")
def make_dit():
    """A tiny DiT with random weights; the mask is the last symbol."""

    def make(vocab_size=4, length=2, seed=0, scale=0.5, **shape):
        sizes = {"hidden_size": 16, "num_blocks": 2, "num_heads": 2, "cond_dim": 8} | shape
        config = DiTConfig(**{"vocab_size": vocab_size, "mask_id": vocab_size - 1, "length": length} | sizes)
        return randomise(DiT(config), seed, scale)

    return make


@pytest.fixture(scope="session")
def make_discriminator():
    """A discriminator on a denoiser's trunk, with a head of random weights."""

    def make(denoiser, seed=0, **options):
        torch.manual_seed(seed)
        return Discriminator.from_denoiser(denoiser, **options).eval()

    return make
