"""Edge cases of masking, and the masks and times of the corrupted states that estimate the bound."""

import dataclasses

import pytest
import torch

from didi.diffusion.absorbing import Absorbing, _random_masks, is_masked_at
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import schedule_from_name

MASK = 3


def test_a_position_is_masked_below_one_minus_alpha_and_not_at_it():
    uniforms = torch.tensor([[0.0, 0.25, 0.5, 0.75]], dtype=torch.float64)
    assert is_masked_at(uniforms, torch.tensor([0.5], dtype=torch.float64)).tolist() == [[True, True, False, False]]
    assert not is_masked_at(uniforms, torch.ones(1, dtype=torch.float64)).any()  # at full signal no position is masked


def test_a_position_takes_one_uniform_number():
    assert Absorbing.draws_per_position == 1


def test_a_process_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Absorbing(MASK).mask_id = 2


@pytest.mark.parametrize("name", ["log-linear", "cosine", "geometric"])
def test_the_times_of_the_bound_match_the_expected_masked_shares(name):
    # Given n masks of L positions the masked share is Beta(n, L - n + 1), whose mean is n / (L + 1).
    process, length = Absorbing(MASK, schedule_from_name(name)), 4
    canvas = Canvas.free(torch.zeros(1, length, dtype=torch.long))
    drawn = process.elbo_draws(canvas, 8000, [named_generator("times")])
    sizes, shares = (drawn.z == MASK).sum(1), 1 - process.schedule.alpha(drawn.t)
    for size in range(1, length + 1):
        mean = float(shares[sizes == size].mean())
        assert mean == pytest.approx(size / (length + 1), abs=0.02), f"{size} masks"


def test_the_masked_shares_are_drawn_in_double_precision():
    masks, shares, sizes = _random_masks(6, 3, named_generator("shares"))
    assert shares.dtype == torch.float64
    assert (shares.float().double() != shares).any()
    assert torch.equal(masks.sum(1), sizes)


def test_the_bound_needs_a_generator_for_each_sequence():
    with pytest.raises(ValueError, match="shorter"):
        Absorbing(MASK).elbo_draws(Canvas.free(torch.zeros(2, 3, dtype=torch.long)), 2, [named_generator(0)])
