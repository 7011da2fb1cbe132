"""Remasking (ReMDM): the exact distribution of samples, the share of masks in each move, and the settings."""

import itertools
import math

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import schedule_from_name
from didi.errors import UsageError
from didi.sampling.base import alpha_at, time_grid
from didi.sampling.remasking import Remasking, RemaskingSampler

NUM = 4000
LOG_LINEAR = Absorbing(3)
STRONG = [Remasking("cap", 0.4), Remasking("rescale", 0.7), Remasking("rescale", 1.0, t_on=0.8, t_off=0.3)]


def remasking_distribution(enumerated, table, remasking, process, nfe):
    """Exact distribution of the clean sequences, by enumeration of the 16 states."""
    probs, state_probs = table[..., :3].double().softmax(-1), enumerated.all_masked()
    for t, s in itertools.pairwise(time_grid(nfe)):
        alpha_t, alpha_s = (float(alpha_at(process.schedule, time)) for time in (t, s))
        remask = remasking.probability(float(t), alpha_t, alpha_s)
        reveal = (alpha_s - (1 - remask) * alpha_t) / (1 - alpha_t)
        state_probs = enumerated.after_move(state_probs, probs, reveal, remask)
    return enumerated.of_clean(state_probs)


@pytest.mark.parametrize("remasking", STRONG, ids=["cap", "rescale", "switch"])
@pytest.mark.parametrize("name", ["log-linear", "cosine"])
def test_samples_follow_the_exact_distribution(enumerated, tabular, draw, chi_square, remasking, name):
    process = Absorbing(3, schedule_from_name(name))
    steps, drawn = draw(RemaskingSampler(tabular(enumerated.table), process, remasking), num=NUM, nfe=4)
    assert chi_square(drawn, remasking_distribution(enumerated, enumerated.table, remasking, process, 4)) > 1e-3
    z = torch.full((NUM, 2), enumerated.MASK)
    for step in steps:
        assert torch.equal(step.is_changed, step.z != z)
        z = step.z


@pytest.mark.slow
@pytest.mark.parametrize("remasking", STRONG, ids=["cap", "rescale", "switch"])
def test_the_share_of_masks_is_that_of_the_forward_process(enumerated, tabular, draw, remasking):
    process = Absorbing(3, schedule_from_name("cosine"))
    steps, _ = draw(RemaskingSampler(tabular(enumerated.table), process, remasking), num=NUM, nfe=8)
    for step in steps[:-1]:
        share = float((step.z == enumerated.MASK).double().mean())
        expected = 1 - float(process.schedule.alpha(torch.tensor(step.t, dtype=torch.float64)))
        assert share == pytest.approx(expected, abs=4 * 0.5 / (2 * NUM) ** 0.5)


def test_tokens_are_masked_again_in_the_moves_from_t_on_to_t_off_both_included():
    remask = Remasking("cap", 0.4, t_on=0.75, t_off=0.25)
    assert [remask.probability(t, 0.5, 0.6) for t in (0.8, 0.75, 0.5, 0.25, 0.2)] == [0.0, 0.4, 0.4, 0.4, 0.0]
    assert Remasking("rescale", 0.5).probability(0.9, 0.1, 0.2) == 0.5
    assert Remasking("rescale", 0.5).probability(0.1, 0.5, 0.9) == pytest.approx(0.1)


def test_without_remasking_it_is_ancestral_sampling(enumerated, tabular, draw, chi_square):
    _, drawn = draw(RemaskingSampler(tabular(enumerated.table), LOG_LINEAR, Remasking(eta=0.0)), num=NUM, nfe=4)
    assert chi_square(drawn, enumerated.sample_probs([enumerated.table] * 4, LOG_LINEAR)) > 1e-3


@pytest.mark.slow
def test_many_remasking_moves_of_the_exact_posterior_give_the_data_distribution(enumerated, tabular, draw, chi_square):
    sampler = RemaskingSampler(tabular(enumerated.exact_table()), LOG_LINEAR, Remasking("rescale", 1.0))
    _, drawn = draw(sampler, num=NUM, nfe=64)
    assert chi_square(drawn, enumerated.data_probs) > 1e-3
    _, drawn = draw(sampler, num=NUM, nfe=4)
    assert chi_square(drawn, enumerated.data_probs) < 1e-6


def test_prompts_are_kept(enumerated, tabular, canvas_of):
    z = torch.tensor([[1, enumerated.MASK], [2, 0]])
    sampler = RemaskingSampler(tabular(enumerated.table), LOG_LINEAR, Remasking("rescale", 1.0))
    for step in sampler(canvas_of(z), time_grid(16), SequenceNoise(0, range(2))):
        assert step.z[0, 0] == 1
        assert step.z[1].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "loop"}, "a remasking strategy is one of cap, rescale; got 'loop'"),
        ({"eta": 1.5}, r"eta lies in \[0, 1\]; got 1.5"),
        ({"t_on": 0.2, "t_off": 0.5}, "0 <= t_off <= t_on <= 1"),
        ({"t_on": math.nan}, "t_on is a finite number; got nan"),
        ({"t_off": math.nan}, "t_off is a finite number; got nan"),
    ],
)
def test_settings_out_of_range_are_refused(unchecked, values, message):
    with pytest.raises(UsageError, match=message):
        Remasking(**values)
