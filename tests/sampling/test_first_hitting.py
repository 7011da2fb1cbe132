"""First-hitting sampling reveals one token in each pass, at the times of the reverse process."""

import itertools
import math

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import schedule_from_name
from didi.sampling.base import time_grid
from didi.sampling.first_hitting import FirstHitting
from didi.sampling.token_distribution import TokenDistribution

NUM = 3000


@pytest.fixture(params=["log-linear", "cosine", "geometric"])
def process(request):
    return Absorbing(3, schedule_from_name(request.param))


def any_order_distribution(enumerated, table):
    """Distribution of the clean sequences if positions are revealed one by one in a uniformly random order."""
    probs = table[..., :3].double().softmax(-1)
    distribution = torch.zeros(9, dtype=torch.float64)
    for order in itertools.permutations(range(2)):
        for clean in itertools.product(range(3), repeat=2):
            state, mass = [enumerated.MASK, enumerated.MASK], 1 / math.factorial(2)
            for position in order:
                mass *= float(probs[state[0] * 4 + state[1], position, clean[position]])
                state[position] = clean[position]
            distribution[clean[0] * 3 + clean[1]] += mass
    return distribution


def test_samples_follow_the_distribution_of_one_token_at_a_time(enumerated, tabular, draw, chi_square, process):
    _, drawn = draw(FirstHitting(tabular(enumerated.table), process), num=NUM, nfe=1)
    assert chi_square(drawn, any_order_distribution(enumerated, enumerated.table)) > 1e-3
    # Two tokens revealed in the same move would have another distribution.
    assert chi_square(drawn, enumerated.sample_probs([enumerated.table], process)) < 1e-3


def test_the_exact_posterior_gives_the_data_distribution(enumerated, tabular, draw, chi_square, process):
    _, drawn = draw(FirstHitting(tabular(enumerated.exact_table()), process), num=NUM, nfe=1)
    assert chi_square(drawn, enumerated.data_probs) > 1e-3


def test_temperature_divides_the_logits(enumerated, tabular, draw, chi_square, process):
    _, drawn = draw(FirstHitting(tabular(enumerated.table), process, TokenDistribution(0.5)), num=NUM, nfe=1)
    assert chi_square(drawn, any_order_distribution(enumerated, 2 * enumerated.table)) > 1e-3


@pytest.mark.slow
def test_reveal_times_follow_the_reverse_process(enumerated, tabular, process, canvas_of):
    """Each of the two positions is masked at time s with probability 1 - alpha_s, independently of the other."""
    first, second = [], []
    for number in range(150):
        steps = list(FirstHitting(tabular(enumerated.table), process)(
            canvas_of(torch.full((1, 2), enumerated.MASK)), time_grid(1), SequenceNoise(0, [number])
        ))  # fmt: skip
        assert len(steps) == 2
        assert steps[0].t >= steps[1].t
        first.append(steps[0].t)
        second.append(steps[1].t)
    # The later and the earlier of two independent times whose distribution function is m = 1 - alpha.
    levels = 1 - process.schedule.alpha(torch.tensor([first, second], dtype=torch.float64))
    for level, exact in ((levels[0], lambda m: m**2), (levels[1], lambda m: 1 - (1 - m) ** 2)):
        for m in (0.2, 0.5, 0.8):
            assert float((level <= m).double().mean()) == pytest.approx(exact(m), abs=4 * 0.5 / 150**0.5)


def test_each_pass_gives_one_token_and_prompts_stay(enumerated, tabular, canvas_of):
    z = torch.tensor([[enumerated.MASK, enumerated.MASK], [1, enumerated.MASK], [2, 0]])
    denoiser = tabular(enumerated.table)
    steps = list(
        FirstHitting(denoiser, Absorbing(3, schedule_from_name("cosine")))(
            canvas_of(z), time_grid(9), SequenceNoise(1, range(3))
        )
    )
    assert [step.network_passes.tolist() for step in steps] == [[1, 1, 0], [1, 0, 0]]
    assert [step.is_changed.sum(1).tolist() for step in steps] == [[1, 1, 0], [1, 0, 0]]
    assert steps[-1].z[1, 0] == 1
    assert steps[-1].z[2].tolist() == [2, 0]
    assert denoiser.head_rows == [2, 1]


@torch.no_grad()
def test_a_time_conditioned_network_reads_the_noise_level_of_each_sequence(enumerated, make_dit, process, canvas_of):
    network = make_dit(seed=3, is_time_conditioned=True)
    levels = []
    features = network.features
    network.features = lambda z, sigma, mask: (levels.append(sigma), features(z, sigma, mask))[1]
    z = torch.full((4, 2), enumerated.MASK)
    steps = list(FirstHitting(network, process)(canvas_of(z), time_grid(1), SequenceNoise(0, range(4))))
    assert len({float(value) for value in levels[0]}) == 4
    assert (levels[0] > levels[1]).all()
    assert (steps[-1].z != enumerated.MASK).all()
