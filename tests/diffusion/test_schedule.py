"""Noise schedules, their NELBO weights, time densities and low-discrepancy times."""

import math

import pytest
import torch

from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import (
    Geometric,
    TimeDensity,
    low_discrepancy_times,
    nelbo_weight,
    schedule_from_name,
    sigma,
    time_at,
    time_weight,
)
from didi.errors import UsageError

INSIDE = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
DENSITIES = [(1.0, 1.0), (2.0, 5.0), (5.0, 2.0)]


@pytest.fixture(params=["log-linear", "cosine", "geometric"])
def schedule(request):
    return schedule_from_name(request.param)


def test_a_schedule_is_returned_by_its_name(schedule):
    assert schedule_from_name(schedule.name) == schedule


def test_alpha_falls_from_one_to_zero(schedule):
    alpha = schedule.alpha(torch.linspace(0, 1, 101, dtype=torch.float64))
    # The geometric schedule ends at exp(-beta_min) and exp(-beta_max), not at 1 and 0.
    slack = 1.1e-5 if isinstance(schedule, Geometric) else 1e-15
    assert alpha[0] == pytest.approx(1, abs=slack)
    assert alpha[-1] == pytest.approx(0, abs=slack)
    assert (alpha.diff() < 0).all()


def test_alpha_prime_is_the_derivative_of_alpha(schedule):
    t = INSIDE.clone().requires_grad_(True)
    (derivative,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    torch.testing.assert_close(schedule.alpha_prime(INSIDE), derivative, rtol=1e-12, atol=0)


def test_the_nelbo_weight_is_the_derivative_of_the_log_masked_share(schedule):
    # d/dt log(1 - alpha) by central differences: error of order step^2.
    step = 1e-5
    log_masked = [torch.log1p(-schedule.alpha(INSIDE + side)) for side in (step, -step)]
    torch.testing.assert_close(
        nelbo_weight(schedule, INSIDE), (log_masked[0] - log_masked[1]) / (2 * step), rtol=1e-5, atol=0
    )


def test_the_log_linear_nelbo_weight_is_one_over_t():
    torch.testing.assert_close(nelbo_weight(schedule_from_name("log-linear"), INSIDE), 1 / INSIDE)


def test_sigma_is_the_total_noise_up_to_its_bound(schedule):
    t = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    actual = sigma(schedule, t)
    torch.testing.assert_close((-actual[:2]).exp(), schedule.alpha(t[:2]))
    assert actual[2] == pytest.approx(
        -math.log(float(schedule.alpha(t[2])) or 1e-3)
    )  # the bound 1e-3 where alpha is 0; 20 nats for the geometric schedule


def test_time_weights_lie_within_their_bounds(schedule):
    weight = time_weight("nelbo", schedule, INSIDE, low=1.5, high=4.0)
    exact = nelbo_weight(schedule, INSIDE)
    assert (weight.min(), weight.max()) == (1.5 if exact.min() < 1.5 else exact.min(), 4.0)
    within = (exact > 1.5) & (exact < 4)
    assert within.any()
    assert torch.equal(weight[within], exact[within])
    assert torch.equal(time_weight("constant", schedule, INSIDE), torch.ones_like(INSIDE))
    assert torch.equal(time_weight("nelbo", schedule, INSIDE), exact)


def test_unknown_names_are_refused(unchecked):
    with pytest.raises(UsageError, match="got 'sine'"):
        schedule_from_name("sine")
    with pytest.raises(UsageError, match="got 'snr'"):
        time_weight("snr", schedule_from_name("cosine"), INSIDE)


@pytest.mark.parametrize(("a", "b"), DENSITIES)
def test_a_time_density_integrates_to_one(a, b):
    t = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    assert TimeDensity(a, b).density(t).mean() == pytest.approx(1, abs=1e-6)  # midpoint rule: error of order 1e-8


def test_a_time_density_is_defined_at_both_ends():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert TimeDensity(1.0, 1.0).density(ends).tolist() == [1, 1]
    assert TimeDensity(2.0, 5.0).density(ends).tolist() == [0, 0]
    assert TimeDensity(1.0, 3.0).density(ends).tolist() == pytest.approx([3, 0])


@pytest.mark.parametrize(("a", "b"), DENSITIES)
def test_sampled_times_follow_their_density(a, b, chi_square):
    density = TimeDensity(a, b)
    times = density.sample(20_000, named_generator("times"))
    assert times.dtype == torch.float64
    grid = (torch.arange(8000, dtype=torch.float64) + 0.5) / 8000
    slices = density.density(grid).view(8, 1000).mean(1)
    # The first and the last interval, with under 5 expected draws of Beta(2, 5) or Beta(5, 2), join their neighbours.
    number = (times * 8).long()
    joined = torch.zeros(7, dtype=torch.float64).index_add(0, torch.arange(8).clamp(1, 6), slices)
    assert chi_square(number.clamp(1, 6), joined) > 1e-3


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, -1.0)])
def test_a_density_with_a_parameter_that_is_not_positive_is_refused(a, b):
    with pytest.raises(UsageError, match="positive"):
        TimeDensity(a, b)


@pytest.mark.parametrize("num", [1, 7, 64])
def test_each_of_n_equal_intervals_has_one_low_discrepancy_time(num):
    t_min = 0.1
    times = low_discrepancy_times(num, named_generator("low", num), t_min=t_min)
    assert sorted(((times - t_min) / (1 - t_min) * num).long().tolist()) == list(range(num))


def test_each_low_discrepancy_time_is_uniform(chi_square):
    generator = named_generator("shift")
    times = torch.stack([low_discrepancy_times(3, generator, t_min=0.25) for _ in range(1000)])
    for column in times.T:
        assert chi_square(((column - 0.25) / 0.75 * 10).long(), torch.ones(10)) > 1e-3


@pytest.mark.parametrize("name", ["log-linear", "cosine", "geometric"])
def test_time_at_inverts_the_schedule(name):
    schedule = schedule_from_name(name)
    t = torch.linspace(0.3, 0.95, 14, dtype=torch.float64)  # where the geometric schedule is not flat
    torch.testing.assert_close(time_at(schedule, schedule.alpha(t)), t, atol=1e-9, rtol=0)


def test_schedules_and_times_have_the_documented_defaults():
    assert Geometric() == Geometric(beta_min=1e-5, beta_max=20.0)
    assert TimeDensity() == TimeDensity(1.0, 1.0)
    generator = named_generator("default")
    shift = torch.rand((), dtype=torch.float64, generator=named_generator("default"))
    torch.testing.assert_close(low_discrepancy_times(1, generator)[0], 1e-3 + (1 - 1e-3) * shift, rtol=1e-15, atol=0)


def test_sampled_times_stay_inside_the_open_interval():
    generator = named_generator("ends")
    small, large = (TimeDensity(*shape).sample(200, generator) for shape in ((1e-3, 1.0), (1.0, 1e-3)))
    assert small.min() == 1e-6
    assert large.max() == 1 - 1e-6


def test_a_generator_fixes_the_times_of_a_density():
    first, again, other = (TimeDensity(2.0, 5.0).sample(4, named_generator(name)) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_stepwise_schedule_is_the_discrete_time_bound():
    schedule, num = schedule_from_name("log-linear-500"), 500
    for dtype in (torch.float64, torch.float32):
        steps = torch.arange(num + 1, dtype=dtype)
        torch.testing.assert_close(schedule.alpha(steps / num), 1 - steps / num)
        inside = (steps[1:] - 0.5) / num  # between two steps a token has the rate of the later one
        torch.testing.assert_close(schedule.alpha(inside), 1 - steps[1:] / num)
    # Sum over steps of (alpha_s - alpha_t) / (1 - alpha_t) f = mean over steps of weight f.
    times = torch.arange(1, num + 1, dtype=torch.float64) / num
    alpha_t, alpha_s = schedule.alpha(times), schedule.alpha(times - 1 / num)
    torch.testing.assert_close(nelbo_weight(schedule, times) / num, (alpha_s - alpha_t) / (1 - alpha_t))
