"""Run-time checks of shapes in all tests, and functions that make small networks."""

import gc
import os

import jaxtyping

from . import shape_checks

os.environ["HF_HUB_OFFLINE"] = "1"  # clients repeat a failed request for 25 seconds
gc.disable()  # enabled again in ``pytest_collection_finish``, after all imports
shape_checks.install()

import pytest  # noqa: E402
import torch  # noqa: E402

from didi.models.discriminator import Discriminator  # noqa: E402
from didi.models.dit import DiT, DiTConfig  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_finish():
    """Exclude imported objects from garbage collection, so that full collections do not visit them."""
    gc.freeze()
    gc.set_threshold(2000, 10, 30)
    gc.enable()


def pytest_runtest_setup():
    """Count the calls of functions from 0 in each test; the first calls are checked."""
    shape_checks.next_test()


@pytest.fixture
def unchecked():
    """Disable type checks in a test, so that values that no annotation allows reach the code that refuses them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def randomise():
    """Function that fills a network with random weights; zero heads and modulations of a new network hide errors."""

    def fill(network, seed=0, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim == 1:  # norms around 1, biases around 0
                    parameter.copy_(("norm" in name) + 0.3 * noise)
                else:
                    parameter.copy_(scale * noise / parameter.shape[-1] ** 0.5)
        return network.eval()

    return fill


@pytest.fixture(scope="session")
def tiny_config():
    """Function that makes the configuration of a tiny DiT whose mask is the last symbol."""

    def make(vocab_size=4, length=2, **changes):
        sizes = {"mask_id": vocab_size - 1, "hidden_size": 16, "num_blocks": 2, "num_heads": 2, "cond_dim": 8}
        return DiTConfig(**{"vocab_size": vocab_size, "length": length} | sizes | changes)

    return make


@pytest.fixture(scope="session")
def make_dit(tiny_config, randomise):
    """Function that makes a tiny DiT with random weights."""

    def make(seed=0, scale=1.0, **shape):
        return randomise(DiT(tiny_config(**shape)), seed, scale)

    return make


@pytest.fixture(scope="session")
def make_discriminator():
    """Function that makes a discriminator on a denoiser's trunk, with a head that depends on the seed."""

    def make(denoiser, seed=0, **options):
        torch.manual_seed(seed)
        return Discriminator.from_denoiser(denoiser, **options).eval()

    return make


@pytest.fixture(scope="session")
def chi_square():
    """Function that returns the p-value of Pearson's chi-square test; 0 if an outcome of probability 0 was drawn."""

    def p_value(draws, probs):
        counts = torch.bincount(draws, minlength=len(probs)).double()
        expected = probs.double() / probs.double().sum() * counts.sum()
        possible = expected > 0
        assert expected[possible].min() >= 5, "too few draws for the chi-square distribution"
        if counts[~possible].any():
            return 0.0
        statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
        degrees = torch.tensor((int(possible.sum()) - 1) / 2, dtype=torch.float64)
        return float(torch.special.gammaincc(degrees, statistic / 2))

    return p_value
