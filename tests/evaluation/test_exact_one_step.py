"""The distribution of a one-step sampler is the mean over initial states; drawn noise biases its divergence."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.evaluation.exact import one_step
from didi.evaluation.exact.one_step import initial_states, noise_draws, one_step_distributions
from didi.evaluation.exact.rows import ExactRows
from didi.models.bundle import Bundle
from didi.models.initial_state import InitialState
from didi.sampling.one_step import OneStep
from didi.sampling.options import SamplingOptions

LENGTH, NUM = 3, 2
CLEAN = list(itertools.product(range(NUM), repeat=LENGTH))


@pytest.fixture(scope="module")
def bundle(make_dit):
    return Bundle(student=make_dit(vocab_size=3, length=LENGTH), initial_state=InitialState(0.5))


@pytest.mark.parametrize(("ratio", "num"), [(1.0, 1), (0.6, 6), (0.3, 12)])
def test_initial_states_are_all_choices_of_masked_positions_and_tokens(ratio, num):
    states = initial_states(ratio, NUM, LENGTH)
    assert len(states) == len({tuple(row) for row in states.tolist()}) == num
    assert ((states == NUM).sum(1) == round(ratio * LENGTH)).all()


@pytest.mark.parametrize("ratio", [1.0, 0.6, 0.3])
def test_without_noise_the_distribution_is_the_mean_over_initial_states(bundle, ratio):
    size, expected = round(ratio * LENGTH), torch.zeros(len(CLEAN), dtype=torch.float64)
    starts = [z for z in itertools.product(range(NUM + 1), repeat=LENGTH) if z.count(NUM) == size]
    for z in starts:
        probs = bundle.student(torch.tensor([z]))[0, :, :NUM].detach().double().softmax(-1)
        for number, x in enumerate(CLEAN):
            expected[number] += math.prod(float(probs[place, token]) for place, token in enumerate(x)) / len(starts)
    sampler = OneStep(bundle.student, bundle.process, initial_state=InitialState(ratio))
    (p,) = one_step_distributions(sampler, NUM, LENGTH)
    torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-9)


def test_the_noise_is_drawn_equally_often_for_each_initial_state(bundle, monkeypatch):
    monkeypatch.setattr(one_step, "NOISE_ROWS", 20)
    rows, denoiser = [], bundle.student
    head = denoiser.head
    monkeypatch.setattr(denoiser, "head", lambda features: rows.append(len(features)) or head(features))
    sampler = OneStep(denoiser, bundle.process, initial_state=InitialState(0.5, 0.9))
    assert one_step_distributions(sampler, NUM, LENGTH).shape == (2, NUM**LENGTH)
    assert rows == [12 * LENGTH] * 2  # 12 initial states; 24 draws are the least even number of at least 20


@pytest.mark.slow
def test_drawn_noise_biases_the_divergence_upwards_by_the_amount_in_its_note(bundle, monkeypatch):
    noisy, chain = replace(bundle, initial_state=InitialState(0.5, 0.9)), MarkovChain(NUM, successor_probs=(0.6, 0.3))
    divergences = {}
    for rows in (24, 2**14):
        monkeypatch.setattr(one_step, "NOISE_ROWS", rows)
        divergences[rows] = ExactRows(noisy)(chain, SamplingOptions(), 1)
    assert noise_draws(12) == math.ceil(2**14 / 12 / 2) * 2
    few, many = (float(each.note.split("about ")[1].split()[0]) for each in divergences.values())
    assert few > 10 * max(many, 1e-6)
    # The note is an estimate from two halves of the draws.
    assert 0.25 * few < divergences[24].kl - divergences[2**14].kl < 4 * few
    assert ExactRows(bundle)(chain, SamplingOptions(), 1).note == ""
