"""Single-precision sampling loses rare tokens, the more the finer the moves; ours does not."""

import exactness
import pytest

from didi.diffusion.absorbing import Absorbing
from didi.sampling.ancestral import Ancestral
from didi.sampling.published import Published

VOCAB_SIZE, NUM_COMMON = 5001, 1000


def share(sampler, nfe, num_sequences):
    found = exactness.rare_tokens(sampler, nfe, num_sequences, NUM_COMMON)
    return exactness.interval(found, num_sequences * exactness.LENGTH)


@pytest.mark.parametrize("nfe", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_float64_keeps_the_share_of_rare_tokens_at_any_number_of_moves(nfe):
    denoiser = exactness.Zipf(VOCAB_SIZE)
    exact, total = denoiser.rare_share(NUM_COMMON), 32 * exactness.LENGTH
    found = exactness.rare_tokens(Ancestral(denoiser, Absorbing(denoiser.mask_id)), nfe, 32, NUM_COMMON) / total
    assert found == pytest.approx(exact, abs=4 * (exact * (1 - exact) / total) ** 0.5)
    # The float32 loss below would be seen: a fifth of the share and more.
    assert 0.2 * exact > 4 * (exact * (1 - exact) / total) ** 0.5


@pytest.mark.large
def test_float32_loses_them_as_moves_grow_finer():
    denoiser = exactness.Zipf(VOCAB_SIZE)
    sampler = Published(denoiser, Absorbing(denoiser.mask_id), precision="float32")
    few, many = (share(sampler, nfe, 8) for nfe in (4, 1024))
    assert few[0] < denoiser.rare_share(NUM_COMMON) < few[1]
    assert many[1] < denoiser.rare_share(NUM_COMMON)


def test_the_interval_is_wilsons():
    assert exactness.interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert exactness.interval(0, 100)[1] > 0
