"""Discrete consistency distillation: the joint distribution of two states of a trajectory, the loss, its gradient."""

import math
from itertools import product

import pytest
import torch
from scipy.integrate import quad
from scipy.special import ndtr

from didi.data.source import RandomSource
from didi.diffusion.gaussian import gamma_at, latents
from didi.diffusion.noise import named_generator
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.methods.dcd import DcdConfig
from didi.methods.settings import DataConfig, LoopConfig
from didi.models.bundle import Bundle
from didi.objectives.dcd import consistency_divergences
from didi.training.trainer import make_trainer

from .gradients import flat_gradient

NUM, X0 = 4, 1
TIMES = [(0.8, 0.55), (0.3, 0.05), (1.0, 0.75), (0.25, 0.0)]


def by_quadrature(t, s, num=NUM):
    """Joint probabilities ``[z_s, z_t]`` of argmax(a x0 + sigma eps) at two times with the same eps, Eq. 22."""
    alphas = torch.tensor([t, s], dtype=torch.float64).neg() + 1
    ratio_t, ratio_s = (-gamma_at(alphas, num) / 2).exp().tolist()  # a / sigma

    def mass(low, high):
        """Probability that noise j is the largest but for that of x0, which it exceeds by a number in [low, high)."""
        value, _ = quad(
            lambda y: math.exp(-y * y / 2) * ndtr(y) ** (num - 2) * (ndtr(y - low) - ndtr(y - high)), -9, 9,
            epsabs=1e-12, limit=400,
        )  # fmt: skip
        return value / math.sqrt(2 * math.pi)

    joint = torch.eye(num, dtype=torch.float64) * mass(ratio_s, math.inf)
    joint[X0] = mass(ratio_t, ratio_s)
    joint[X0, X0] = mass(-math.inf, ratio_t) * (num - 1)
    return joint


def by_method(t, s, num=NUM, grid=200):
    """Joint probabilities ``[z_s, z_t]`` of ``Uniform.corrupt``, by a grid of draws; exact for signal rates on it."""
    uniforms = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    symbols = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    draws = torch.cartesian_prod(uniforms, symbols)[:, None]
    x0 = torch.full((len(draws), 1), X0)
    z_s, z_t = (
        Uniform(num).corrupt(x0, torch.full((len(draws),), time, dtype=torch.float64), draws) for time in (s, t)
    )
    return torch.bincount((z_s * num + z_t)[:, 0], minlength=num**2).view(num, num) / len(draws)


@pytest.mark.parametrize(("t", "s"), TIMES)
def test_the_states_have_the_joint_distribution_of_the_deterministic_trajectory(t, s):
    torch.testing.assert_close(by_method(t, s).double(), by_quadrature(t, s), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("t", "s"), TIMES)
def test_the_marginals_of_the_trajectory_are_those_of_uniform_state_diffusion(t, s):
    joint = by_quadrature(t, s)
    for axis, time in ((1, s), (0, t)):
        expected = torch.full((NUM,), time / NUM, dtype=torch.float64)
        expected[X0] += 1 - time
        torch.testing.assert_close(joint.sum(axis), expected, rtol=0, atol=1e-8)


def test_the_joint_distribution_is_that_of_gaussian_latents_with_the_same_noise(chi_square):
    t, s, draws = 0.8, 0.4, 20_000
    noise = torch.randn(draws, 1, NUM, generator=named_generator("one noise"))
    x0 = torch.full((draws, 1), X0)
    z_s, z_t = (
        latents(x0, gamma_at(torch.tensor(1 - time), NUM).expand(draws), noise).argmax(-1)[:, 0] for time in (s, t)
    )
    assert chi_square(z_s * NUM + z_t, by_method(t, s).flatten()) > 1e-3
    independent = by_method(t, s).sum(1)[:, None] * by_method(t, s).sum(0)
    assert chi_square(z_s * NUM + z_t, independent.flatten()) < 1e-9


def divergences_by_definition(kind, of_student, of_target):
    """Divergences of rows of log-probabilities, from their definitions."""
    backward = (of_student.exp() * (of_student - of_target)).sum(-1)
    forward = (of_target.exp() * (of_target - of_student)).sum(-1)
    return {"backward": backward, "forward": forward, "jeffreys": backward + forward}[kind]


@pytest.mark.parametrize("kind", ["backward", "forward", "jeffreys"])
def test_divergences_and_their_gradient_are_those_of_the_definition(kind, monkeypatch):
    monkeypatch.setattr("didi.diffusion.rowwise.CACHE_ELEMENTS", 12)  # three rows at a time
    student, target = torch.randn(2, 7, 4, generator=named_generator("logits")).unbind()
    student.requires_grad_()
    target.requires_grad_()
    divergences = consistency_divergences(student, target.detach(), kind)
    expected = divergences_by_definition(kind, student.log_softmax(-1), target.log_softmax(-1).detach())
    torch.testing.assert_close(divergences, expected)
    weights = torch.rand(7, generator=named_generator("weights"))
    (gradient,) = torch.autograd.grad(divergences @ weights, student)
    (by_definition,) = torch.autograd.grad(expected @ weights, student)
    torch.testing.assert_close(gradient, by_definition)


def test_the_default_is_the_divergence_of_the_student_from_the_target():
    student, target = torch.randn(2, 7, 4, generator=named_generator("logits")).unbind()
    assert torch.equal(consistency_divergences(student, target), consistency_divergences(student, target, "backward"))


@pytest.mark.usefixtures("unchecked")
def test_another_divergence_is_refused():
    with pytest.raises(UsageError, match="a divergence is one of forward, backward, jeffreys; got 'tv'"):
        consistency_divergences(torch.zeros(1, 2), torch.zeros(1, 2), "tv")


class Pairs(RandomSource):
    """Two positions of three symbols with a known distribution."""

    probs = torch.tensor([0.3, 0.05, 0.1, 0.02, 0.2, 0.08, 0.15, 0.03, 0.07], dtype=torch.float64)

    def batch(self, step, size):
        drawn = torch.multinomial(self.probs, size, True, generator=named_generator("pairs", step))
        return torch.stack([drawn // 3, drawn % 3], 1)


def enumerated_loss(student, target, t, s, kind):
    """Expectation of the loss over all x0, z_s and z_t; float64 sums."""
    process, states = Uniform(3), torch.cartesian_prod(torch.arange(3), torch.arange(3))

    def log_probs(network, time):
        level = process.noise_level(network, torch.full((9,), time, dtype=torch.float64))
        return network(states, level).double().log_softmax(-1)

    of_student, of_target = log_probs(student, t), log_probs(target, s).detach()
    alpha_t, alpha_s = 1 - t, 1 - s
    total = 0.0
    for (i, first), (j, second) in product(enumerate(states), repeat=2):  # z_s and z_t
        mass = 0.0
        for x0, prob in zip(states, Pairs.probs, strict=True):
            joint = prob
            for clean, a, b in zip(x0.tolist(), first.tolist(), second.tolist(), strict=True):
                if b == clean:
                    joint = joint * (a == clean) * (alpha_t + (1 - alpha_t) / 3)
                elif a == clean:
                    joint = joint * (alpha_s - alpha_t) / 3
                else:
                    joint = joint * (a == b) * (1 - alpha_s) / 3
            mass = mass + joint
        total = total + mass * divergences_by_definition(kind, of_student[j], of_target[i]).mean()
    return total


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["backward", "forward"])
def test_the_gradient_of_a_step_is_that_of_the_expectation_over_the_joint_distribution(make_dit, monkeypatch, kind):
    shape = {"vocab_size": 3, "length": 2, "mask_id": None, "is_time_conditioned": True, "scale": 0.8}
    teacher, other = (make_dit(seed=seed, **shape) for seed in (1, 2))
    monkeypatch.setattr(
        "didi.methods.dcd.low_discrepancy_times",
        lambda num, generator, t_min: torch.full((num,), 0.35, dtype=torch.float64),
    )
    settings = DcdConfig(
        data=DataConfig(corpus="markov", length=2),
        rounds=1,
        num_intervals=4,
        divergence=kind,
        loop=LoopConfig(steps=1, batch_size=6000),
    )
    bundle = Bundle(teacher=teacher, process=Uniform(3))
    method = make_trainer(settings, Inputs(Pairs(2, 4), torch.device("cpu"), teacher=bundle)).method
    method.student.load_state_dict(other.state_dict())
    loss, _ = method._loss(method.prepare(0, 0))
    expected = enumerated_loss(other.requires_grad_(True), teacher, 0.6, 0.35, kind)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.03)
    actual, exact = (flat_gradient(value, network) for value, network in ((loss, method.student), (expected, other)))
    assert (actual - exact).norm() < 0.06 * exact.norm()
