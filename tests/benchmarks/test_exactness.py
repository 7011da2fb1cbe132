"""``benchmarks/exactness.py``: sampling in float64 keeps the share of rare tokens; in float32, many moves lose them."""

import exactness
import pytest

from didi.diffusion.absorbing import Absorbing
from didi.sampling.ancestral import Ancestral
from didi.sampling.published import Published

VOCAB_SIZE, NUM_COMMON = 5001, 1000


def share_interval(sampler, nfe, num_sequences):
    num_rare = exactness.rare_tokens(sampler, nfe, num_sequences, NUM_COMMON)
    return exactness.interval(num_rare, num_sequences * exactness.LENGTH)


@pytest.mark.parametrize("nfe", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_float64_keeps_the_share_of_rare_tokens_at_any_number_of_moves(nfe):
    denoiser = exactness.Zipf(VOCAB_SIZE)
    exact, total = denoiser.rare_share(NUM_COMMON), 32 * exactness.LENGTH
    share = exactness.rare_tokens(Ancestral(denoiser, Absorbing(denoiser.mask_id)), nfe, 32, NUM_COMMON) / total
    tolerance = 4 * (exact * (1 - exact) / total) ** 0.5  # four standard errors
    assert share == pytest.approx(exact, abs=tolerance)
    assert tolerance < 0.2 * exact  # float32 loses a fifth of the share or more, which is outside of the tolerance


@pytest.mark.large
def test_float32_loses_rare_tokens_with_many_moves():
    denoiser = exactness.Zipf(VOCAB_SIZE)
    sampler = Published(denoiser, Absorbing(denoiser.mask_id), precision="float32")
    few, many = (share_interval(sampler, nfe, 8) for nfe in (4, 1024))
    assert few[0] < denoiser.rare_share(NUM_COMMON) < few[1]
    assert many[1] < denoiser.rare_share(NUM_COMMON)


def test_the_interval_is_wilsons():
    assert exactness.interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert exactness.interval(0, 100)[1] > 0
