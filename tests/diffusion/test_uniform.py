"""Uniform-state diffusion, enumerated for three symbols and two positions."""

import itertools
import math

import pytest
import torch

from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import schedule_from_name
from didi.diffusion.uniform import Uniform

NUM = 3
STATES = torch.tensor(list(itertools.product(range(NUM), repeat=2)))
DATA = torch.tensor([0.30, 0.02, 0.08, 0.05, 0.20, 0.03, 0.02, 0.05, 0.25], dtype=torch.float64)


def kernel(alpha):
    """q(z^l = i | x^l = j), [i, j]."""
    return alpha * torch.eye(NUM, dtype=torch.float64) + (1 - alpha) / NUM


def leave_one_out(alpha):
    """p(x^l = v | z^m of the other position m), [l, z^m, v]: the exact prediction."""
    joint = DATA.view(NUM, NUM)
    first = torch.einsum("zw,vw->zv", kernel(alpha), joint)
    second = torch.einsum("zw,wv->zv", kernel(alpha), joint)
    tables = torch.stack([first, second])
    return tables / tables.sum(-1, keepdim=True)


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
def test_corruption_follows_the_kernel_and_is_nested(chi_square, schedule):
    process, num = Uniform(NUM, schedule_from_name(schedule)), 20_000
    draws = torch.rand(num, 1, 2, dtype=torch.float64, generator=named_generator("uniform"))
    x0 = torch.full((num, 1), 2)
    early, late = (process.corrupt(x0, torch.full((num,), t, dtype=torch.float64), draws) for t in (0.3, 0.7))
    for z, t in ((early, 0.3), (late, 0.7)):
        assert chi_square(z[:, 0], kernel(float(process.schedule.alpha(torch.tensor(t))))[:, 2]) > 1e-3
    was_replaced = early != x0
    assert torch.equal(late[was_replaced], early[was_replaced])


def test_the_posterior_is_bayes_rule():
    process, (t, s) = Uniform(NUM), (0.8, 0.3)
    prior = torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64)
    at_s = kernel(1 - s) @ prior
    step = kernel((1 - t) / (1 - s))  # from s to t
    times = (torch.tensor([time], dtype=torch.float64) for time in (t, s))
    actual = process.posterior(torch.arange(NUM)[None], prior.log().expand(1, NUM, NUM), *times)[0]
    for state in range(NUM):
        joint = step[state] * at_s
        torch.testing.assert_close(actual[state], joint / joint.sum())
    weights = process.reverse_weights(prior.log().expand(NUM, NUM), torch.arange(NUM), 1 - t, 1 - s)
    torch.testing.assert_close(weights / weights.sum(-1, keepdim=True), actual)


def test_estimates_of_the_nelbo_are_unbiased_and_keep_given_positions():
    process = Uniform(NUM)
    tokens, is_free = torch.tensor([[2, 0]]), torch.tensor([[False, True]])
    drawn = process.elbo_draws(Canvas.given(tokens, is_free), 40_000, [named_generator("draws")])
    assert (drawn.z[:, 0] == 2).all()
    table = torch.stack([leave_one_out(1.0)[1, 2]]).log().float()  # the given position is clean at all times
    logits = torch.zeros(len(drawn.z), 2, NUM)
    logits[:, 1] = table
    x0 = tokens.expand(len(drawn.z), 2)
    terms = process.loss_terms(logits.flatten(0, 1), x0, drawn.z, drawn.t)[:, 1].double() * drawn.weight
    # One free position, predicted from the given one alone: the bound is tight, -log p(x^2 = 0 | x^1 = 2).
    expected = -math.log(float(leave_one_out(1.0)[1, 2, 0]))
    error = float(terms.std()) / len(terms) ** 0.5
    assert error < 0.05 * expected
    assert float(terms.mean()) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize(("number", "end"), [(0.0, 1e-12), (1 - 2**-53, (1 - 1e-9) ** 2)])
def test_times_of_the_bound_stay_inside_the_open_interval(monkeypatch, number, end):
    def rand(shape, *, dtype, generator):
        return torch.full((shape,) if isinstance(shape, int) else shape, number, dtype=dtype)

    monkeypatch.setattr(torch, "rand", rand)
    drawn = Uniform(NUM).elbo_draws(Canvas.blank(1, 2), 1, [named_generator("ends")])
    assert float(drawn.t) == pytest.approx(end, rel=1e-3, abs=0)
    assert drawn.weight.isfinite().all()


def test_a_draw_that_was_rounded_up_to_1_is_the_last_symbol():
    assert Uniform(NUM).prior(Canvas.blank(1, 2), torch.ones(1, 2, 2)).tolist() == [[NUM - 1] * 2]


def test_a_move_between_equal_times_changes_nothing_even_at_pure_noise():
    log_probs = torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64).log().expand(1, NUM, NUM)
    for time in (1.0, 0.4):
        t = torch.tensor([time], dtype=torch.float64)
        actual = Uniform(NUM).posterior(torch.arange(NUM)[None], log_probs, t, t)[0]
        torch.testing.assert_close(actual, torch.eye(NUM, dtype=torch.float64))


def test_a_mask_that_is_the_last_symbol_is_left_out():
    schedule = schedule_from_name("cosine")
    assert Uniform.of_tokenizer(9, 8, schedule) == Uniform(8, schedule)
    assert Uniform.of_tokenizer(9, 3, schedule) == Uniform(9, schedule)
    assert Uniform(8).num_symbols(9) == 8


@pytest.mark.parametrize("schedule", ["log-linear", "log-linear-eps", "cosine", "geometric"])
def test_weights_of_the_bound_are_the_loss_weight_over_the_density(schedule):
    process, num = Uniform(NUM, schedule_from_name(schedule)), 4000
    drawn = process.elbo_draws(Canvas.blank(1, 2), num, [named_generator("weights")])
    root = (1 - process.schedule.alpha(drawn.t)).sqrt()
    assert drawn.t.diff().min() > 0  # one in each of num equal intervals of the root
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(num - 1), rtol=0, atol=2 / num)
    # Weights over loss weights, summed over 100 consecutive draws, are the time between the first and the last.
    steps = (drawn.weight / process.loss_weight(drawn.t) / num)[1:-1]
    times = drawn.t[1:-1:100].diff()
    torch.testing.assert_close(steps.split(100)[0].sum(), times[0], rtol=0.05, atol=0)
    torch.testing.assert_close(steps[2000:2100].sum(), times[20], rtol=0.05, atol=0)
    torch.testing.assert_close(steps[3500:3600].sum(), times[35], rtol=0.05, atol=0)


def test_estimates_of_the_nelbo_are_not_dominated_by_a_few_draws():
    process, x0 = Uniform(NUM), torch.tensor([[2, 0]])
    drawn = process.elbo_draws(Canvas.free(x0), 40_000, [named_generator("tails")])
    logits = torch.randn(1, NUM, generator=named_generator("wrong")).expand(2 * len(drawn.z), NUM)
    terms = process.loss_terms(logits, x0.expand(len(drawn.z), 2), drawn.z, drawn.t).sum(1).double() * drawn.weight
    assert float(terms.max()) < 0.01 * float(terms.sum())
    assert float(terms.std()) < 4 * float(terms.mean())
