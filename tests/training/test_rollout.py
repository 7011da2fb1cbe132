"""Rollouts of the student against exact distributions, enumerated for 2 positions of 3 symbols."""

import itertools

import numpy as np
import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import sigma
from didi.methods.didi_settings import ObjectiveConfig
from didi.methods.rollout import rollout
from didi.methods.trajectories import first_states, masked_log_probs, states_before_a_move

CPU = torch.device("cpu")
MASK = 3
PROCESS = Absorbing(MASK)
STATES = torch.tensor(list(itertools.product(range(4), repeat=2)))
CLEAN = torch.tensor(list(itertools.product(range(3), repeat=2)))


@pytest.fixture(scope="module")
def student(make_dit):
    return make_dit(seed=2)


def roll(student, num_states, length=2, name="rollout", **objective):
    process, settings = Absorbing(student.mask_id), ObjectiveConfig(**objective)
    return rollout(student, process, num_states, length, settings, named_generator(name), CPU)


@torch.no_grad()
def distributions_of_two_moves(student):
    """Distributions of z_tau [16] and x [9] for uniform tau; they are polynomials in tau, so that 4 nodes are exact."""
    probs = student(STATES)[..., :3].double().softmax(-1)
    nodes, shares = np.polynomial.legendre.leggauss(4)
    z_tau, x = torch.zeros(16, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
    for tau, share in zip(nodes / 2 + 0.5, shares / 2, strict=True):
        for number, state in enumerate(STATES):
            visible = state != MASK
            tokens = probs[-1, [0, 1], state.clamp(max=2)][visible].prod()
            mass = share * tau ** int((~visible).sum()) * (1 - tau) ** int(visible.sum()) * tokens
            z_tau[number] += mass
            for index, clean in enumerate(CLEAN):
                if (clean[visible] == state[visible]).all():
                    x[index] += mass * probs[number, [0, 1], clean][~visible].prod()
    return z_tau, x


def test_trajectories_follow_the_two_move_generator(student, chi_square):
    of_z_tau, of_x = distributions_of_two_moves(student)
    batch = roll(student, 4000, completions=2)
    assert chi_square(batch.z_tau[:, 0] * 4 + batch.z_tau[:, 1], of_z_tau) > 1e-3
    for number in range(2):
        x = batch.x[:, number]
        assert chi_square(x[:, 0] * 3 + x[:, 1], of_x) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("num_moves", [3, 4])
def test_states_of_a_path_have_the_distribution_of_the_students_sampler(student, chi_square, num_moves):
    batch = roll(student, 12_000, trajectory="path", moves=num_moves, completions=2)
    assert ((batch.tau * num_moves) % 1 == 0).all()
    assert ((batch.t <= batch.tau) & (batch.t >= batch.tau - 1 / num_moves)).all()
    assert not batch.first_score.any()
    probs = student(STATES)[..., :3].double().softmax(-1)
    distribution, expected = torch.zeros(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    distribution[-1] = 1
    for number in range(num_moves):  # t is uniform within a move: polynomials of degree 2 in it, so 2 nodes are exact
        tau = 1 - number / num_moves
        for node in (0.5 - 12**-0.5, 0.5 + 12**-0.5):
            expected += after_move(distribution, probs, node / num_moves / tau) / (2 * num_moves)
        distribution = after_move(distribution, probs, 1 / num_moves / tau)
    for completion in range(2):
        z = batch.z_t[:, completion, 0]
        assert chi_square(z[:, 0] * 4 + z[:, 1], expected) > 1e-3
    is_visible = batch.z_tau != MASK
    assert torch.equal(batch.z_t[:, 0, 0][is_visible], batch.z_tau[is_visible])


def after_move(distribution, probs, reveal):
    """Distribution of the states after a move that reveals each mask with probability ``reveal``."""
    after = torch.zeros(16, dtype=torch.float64)
    for number, mass in enumerate(distribution.tolist()):
        options = []
        for position, token in enumerate(STATES[number].tolist()):
            if token != MASK:
                options.append([(token, 1.0)])
            else:
                shares = probs[number, position].tolist()
                options.append([(k, reveal * shares[k]) for k in range(3)] + [(MASK, 1 - reveal)])
        for (first, p), (second, q) in itertools.product(*options):
            after[first * 4 + second] += mass * p * q
    return after


@torch.no_grad()
def test_a_one_step_trajectory_has_one_move_from_the_all_mask_state(student, chi_square):
    batch = roll(student, 4000, trajectory="one-step")
    assert (batch.z_tau == MASK).all()
    assert not batch.first_score.any()
    probs = student(STATES[-1:])[0, :, :3].softmax(-1)
    expected = probs[0, CLEAN[:, 0]] * probs[1, CLEAN[:, 1]]
    assert chi_square(batch.x[:, 0, 0] * 3 + batch.x[:, 0, 1], expected) > 1e-3
    torch.testing.assert_close(batch.second_log_probs.exp()[:, :3], probs.repeat(4000, 1))


@pytest.mark.parametrize("coupled_time", [True, False])
def test_corruptions_are_independent_and_at_their_time(student, coupled_time):
    batch = roll(student, 3000, completions=2, corruptions=2, coupled_time=coupled_time)
    is_masked = batch.z_t == MASK
    assert torch.equal(batch.z_t[~is_masked], batch.x[:, :, None].expand_as(batch.z_t)[~is_masked])
    residual = is_masked.double() - batch.t[:, None, None, None]
    flat = residual.flatten(1)  # 8 uniforms for each state: 2 completions, 2 corruptions, 2 positions
    scale = (batch.t * (1 - batch.t)).mean()
    # Each entry is a mean of 3000 products with variance at most 1/16: 4 standard errors are below 0.02.
    covariance = flat.T @ flat / 3000
    torch.testing.assert_close(covariance, scale * torch.eye(8, dtype=torch.float64), rtol=0, atol=0.02)
    assert flat.mean().abs() < 4 * (scale / flat.numel()) ** 0.5
    # The share of masks in z_tau is correlated with the time of z_t if times are coupled.
    correlation = torch.corrcoef(torch.stack([(batch.z_tau == MASK).double().mean(1), batch.t]))[0, 1]
    assert (correlation > 0.5) == coupled_time


def test_the_canvas_of_the_corruptions_has_one_row_for_each_corruption(student):
    batch = roll(student, 4, completions=2, corruptions=3)
    assert batch.z_t.shape == (4, 2, 3, 2)
    assert len(batch.corruption_canvas) == 4 * 2 * 3


@torch.no_grad()
def test_completions_of_a_state_are_independent_and_keep_its_tokens(student):
    batch = roll(student, 3000, completions=2)
    is_all_masks = (batch.z_tau == MASK).all(1)
    first, second = batch.x[is_all_masks].unbind(1)
    probs = student(STATES[-1:])[0, :, :3].softmax(-1)
    num_equal, num = int((first == second).all(1).sum()), len(first)
    expected = float(probs.square().sum(-1).prod())  # probability that independent completions are equal
    assert num > 800
    assert num_equal / num == pytest.approx(expected, abs=4 * (expected * (1 - expected) / num) ** 0.5)
    kept = (batch.z_tau != MASK)[:, None].expand_as(batch.x)
    assert torch.equal(batch.x[kept], batch.z_tau[:, None].expand_as(batch.x)[kept])
    assert (batch.x != MASK).all()


@pytest.mark.parametrize("is_time_conditioned", [True, False])
@torch.no_grad()
def test_scores_are_the_log_probabilities_of_the_drawn_tokens(make_dit, is_time_conditioned):
    student = make_dit(vocab_size=5, length=6, seed=4, is_time_conditioned=is_time_conditioned)
    batch = roll(student, 20, length=6, completions=3)

    def log_probs(z, t):
        level = sigma(PROCESS.schedule, t).float() if is_time_conditioned else None
        return student(z, level)[..., :4].log_softmax(-1)

    all_masks = torch.full((1, 6), 4)
    first = log_probs(all_masks, torch.ones(1, dtype=torch.float64)).expand(20, 6, 4)
    is_masked = batch.z_tau == 4
    chosen = first.gather(-1, batch.z_tau.clamp(max=3)[..., None]).squeeze(-1)
    torch.testing.assert_close(batch.first_score, torch.where(is_masked, 0.0, chosen).sum(1))
    second = log_probs(batch.z_tau, batch.t)  # coupled times: t = tau
    for number in range(3):
        chosen = second.gather(-1, batch.x[:, number, :, None]).squeeze(-1)
        expected = torch.where(is_masked, chosen, 0.0)
        torch.testing.assert_close(batch.completion_log_probs[:, number], expected)
    torch.testing.assert_close(batch.first_log_probs[:, :4], first[0])
    torch.testing.assert_close(batch.second_log_probs[:, :4], second[is_masked])
    assert (batch.second_log_probs[:, 4] == -torch.inf).all()


def test_both_scores_carry_the_students_gradient(student):
    batch = roll(student, 8)
    for score in (batch.first_score, batch.completion_log_probs):
        gradients = torch.autograd.grad(score.sum(), list(student.parameters()), retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    assert not batch.x.requires_grad


def test_the_first_pass_has_one_row_and_the_second_one_for_each_state(student):
    num_rows = []
    handle = student.vocab_embed.register_forward_pre_hook(lambda module, inputs: num_rows.append(len(inputs[0])))
    try:
        roll(student, 16, completions=5, corruptions=3)
    finally:
        handle.remove()
    assert num_rows == [1, 16]


def test_a_group_of_states_may_share_its_times(student):
    batch = roll(student, 12, advantage="shared-time", group_size=4, coupled_time=False)
    groups = batch.t.view(3, 4)
    assert (groups == groups[:, :1]).all()
    assert len(groups[:, 0].unique()) == 3
    assert len(roll(student, 12).t.unique()) == 12


def test_the_times_follow_their_density(student, chi_square):
    t = roll(student, 4000, time_a=2.0, time_b=1.0).t  # density 2t: quarters hold 1, 3, 5, 7 sixteenths
    assert chi_square((4 * t).long(), torch.tensor([1, 3, 5, 7])) > 1e-3


def test_the_generator_determines_the_rollout(student):
    first, again, other = roll(student, 16), roll(student, 16), roll(student, 16, name="other")
    assert torch.equal(first.z_t, again.z_t)
    assert not torch.equal(first.z_t, other.z_t)


@torch.no_grad()
def test_masked_log_probs_are_those_of_the_rows_in_order(student):
    z = torch.tensor([[MASK, 1], [0, 2], [MASK, MASK]])
    log_probs = masked_log_probs(student, PROCESS, z, torch.full((3,), 0.5, dtype=torch.float64))
    expected = student(z)[z == MASK][:, :3].log_softmax(-1)
    torch.testing.assert_close(log_probs[:, :3], expected)
    torch.testing.assert_close(first_states(student, PROCESS, Canvas.blank(1, 2)).log_probs, log_probs[1:])


def test_the_time_within_a_move_is_drawn_in_double_precision(student):
    batch = roll(student, 16, trajectory="path", moves=4)
    offsets = (batch.tau - batch.t) * 4 * 2**24  # whole numbers, if they were drawn in float32
    assert (offsets - offsets.round()).abs().max() > 0.01


def test_a_path_takes_no_more_passes_than_its_furthest_state_and_no_gradient(student, monkeypatch):
    passes, features = [], student.features
    monkeypatch.setattr(
        student, "features", lambda *inputs: passes.append(torch.is_grad_enabled()) or features(*inputs)
    )
    uniforms = torch.rand(2, 3, 2, dtype=torch.float64)
    states_before_a_move(student, PROCESS, torch.tensor([2, 0, 1]), 5, uniforms)
    assert passes == [False, False]
