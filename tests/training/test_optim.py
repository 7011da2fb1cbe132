"""Learning rates, weight decay, clipped updates, and the average of weights."""

import copy
import math

import pytest
import torch
from torch import nn

from didi.methods.settings import OptimizerConfig
from didi.training.optim import Average, clip_and_step, learning_rate, make_optimizer


def rates(num_steps, **settings):
    config = OptimizerConfig(learning_rate=0.1, **settings)
    return [learning_rate(config, step, num_steps) for step in range(num_steps)]


def test_the_rate_rises_linearly_to_its_peak():
    assert rates(8, warmup_steps=4, decay="constant") == pytest.approx([0.025, 0.05, 0.075, 0.1, *[0.1] * 4])


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_the_rate_decays_in_the_configured_shape(decay, expected):
    assert rates(4, decay=decay) == pytest.approx([0.1 * fraction for fraction in expected])


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_rate_ends_at_its_final_fraction_and_stays_there(decay):
    config = OptimizerConfig(learning_rate=0.1, decay=decay, final_fraction=0.2, warmup_steps=3)
    assert learning_rate(config, 3, 10) == pytest.approx(0.1)
    assert [learning_rate(config, step, 10) for step in (10, 50)] == pytest.approx([0.02, 0.02])


def linear_network(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def test_weight_decay_applies_to_matrices_and_frozen_weights_are_excluded():
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    network[1].requires_grad_(False)
    network[0].weight.grad, network[0].bias.grad = torch.zeros(2, 3), torch.zeros(2)
    before = copy.deepcopy(network.state_dict())
    optimizer = make_optimizer(network, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    optimizer.step()
    torch.testing.assert_close(network[0].weight, before["0.weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(network[0].bias, before["0.bias"])


def test_an_update_clips_the_gradient_steps_at_the_rate_and_clears_the_gradient():
    network, reference = linear_network(), linear_network()
    config = OptimizerConfig(learning_rate=9.0, clip_norm=1.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=9.0)
    network.weight.grad, network.bias.grad = torch.full((2, 3), 3.0), torch.full((2,), 4.0)
    norm = clip_and_step(network, optimizer, config, rate=0.5)
    expected = math.sqrt(6 * 9 + 2 * 16)
    assert float(norm) == pytest.approx(expected)
    torch.testing.assert_close(network.weight, reference.weight - 0.5 * 3 / expected)
    torch.testing.assert_close(network.bias, reference.bias - 0.5 * 4 / expected)
    assert network.weight.grad is None


def test_a_small_gradient_is_not_scaled_up():
    network, reference = linear_network(), linear_network()
    network.weight.grad = torch.full((2, 3), 0.01)
    clip_and_step(network, torch.optim.SGD(network.parameters(), lr=1.0), OptimizerConfig(clip_norm=1.0), rate=1.0)
    torch.testing.assert_close(network.weight, reference.weight - 0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_reported(bad):
    network = linear_network()
    optimizer = make_optimizer(network, OptimizerConfig())
    network.weight.grad, network.bias.grad = torch.ones(2, 3), torch.tensor([0.0, bad])
    norm = clip_and_step(network, optimizer, OptimizerConfig(), rate=1.0)
    assert not torch.isfinite(norm)
    assert torch.equal(network.weight, linear_network().weight)
    assert not optimizer.state
    assert network.weight.grad is None


def test_the_average_follows_a_ramped_decay():
    network = nn.Linear(1, 1, bias=False)
    average = Average(network, decay=0.3)
    assert average.module.weight.item() == network.weight.item()
    expected = None
    for number, value in enumerate((1.0, 5.0, -2.0, 8.0, 0.5)):
        with torch.no_grad():
            network.weight.fill_(value)
        average.update_parameters(network)
        decay = min(0.3, (1 + number) / (10 + number))  # 2/11, 3/12 and 4/13 > 0.3
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected)


def test_buffers_are_copied_to_the_average():
    network = nn.BatchNorm1d(2)
    average = Average(network, decay=0.9)
    network.running_mean.fill_(3.0)
    average.update_parameters(network)
    assert average.module.running_mean.tolist() == [3, 3]


def test_without_a_ramp_the_average_decays_from_the_first_update():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    average = Average(network, 0.9, is_ramped=False)
    average.update_parameters(network)  # the first update copies
    nn.init.ones_(network.weight)
    average.update_parameters(network)
    assert average.module.weight.item() == pytest.approx(0.1)


@pytest.mark.parametrize("is_changed", [False, torch.tensor(False)])
def test_a_skipped_step_does_not_change_the_average(is_changed):
    network = nn.Linear(1, 1, bias=False)
    average = Average(network, 0.9)
    average.update_parameters(network)
    before = average.module.weight.item()
    nn.init.constant_(network.weight, 5.0)
    average.update_parameters(network, is_changed)
    assert (average.module.weight.item(), int(average.n_averaged)) == (before, 1)


@pytest.mark.parametrize("is_ramped", [True, False])
def test_averages_with_a_condition_on_the_device_equal_those_with_a_condition_on_the_host(is_ramped):
    network = nn.Linear(3, 1)
    of_host, of_device = (Average(network, 0.3, is_ramped=is_ramped) for _ in range(2))
    for is_changed in (True, True, False, True, True, True):
        with torch.no_grad():
            network.weight.copy_(torch.randn(1, 3))
        of_device.update_parameters(network, torch.tensor(is_changed))
        if is_changed:
            of_host.update_parameters(network)
        torch.testing.assert_close(of_device.module.weight, of_host.module.weight)
    assert int(of_device.n_averaged) == int(of_host.n_averaged) == 5
