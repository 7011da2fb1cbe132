"""SDTT by enumeration: the gradient of its expected loss, its targets, and the student that minimises it.

Two positions, two symbols and a mask. The teacher's probabilities are multiples of 1/4, so that four uniform numbers
enumerate each draw; a student is a table of logits.
"""

import itertools

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.categorical import divergence
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation.exact import sdtt as exact_sdtt
from didi.evaluation.exact.states import States
from didi.methods.sdtt import log_probs_where, teacher_targets
from didi.objectives.sdtt import distillation_loss, step_size, step_times, target_steps

MASK = 2
ALL_STATES = States(2, 2)
STATES, CLEAN = ALL_STATES.tokens, ALL_STATES.clean
PROCESS = Absorbing(MASK)
DATA = torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=torch.float64)
FIRST = torch.randint(1, 4, (9, 2), generator=named_generator("teacher")).double() / 4  # of symbol 0
TEACHER = torch.stack([FIRST, 1 - FIRST], -1)
STUDENT = torch.randn(9, 2, 2, dtype=torch.float64, generator=named_generator("student"))
LOSSES = {
    "kl": lambda q, p: (p * (p / q).log()).sum(-1),
    "forward-kl": lambda q, p: (q * (q / p).log()).sum(-1),
    "mse": lambda q, p: (p.log() - q.log()).square().sum(-1) / 3,  # over the vocabulary, the mask included
    "tv": lambda q, p: (p - q).abs().sum(-1) / 2,
}


class TableDenoiser:
    """A denoiser that is a table of logits over all states; it records the rows and times of its passes."""

    vocab_size, length, is_time_conditioned = 3, 2, True

    def __init__(self, logits):
        self.logits, self.passes = torch.cat([logits, torch.zeros(9, 2, 1)], -1).double(), []

    def features(self, inputs, sigma=None, attention_mask=None):
        self.passes.append((inputs, sigma))
        return self.logits[inputs[:, 0] * 3 + inputs[:, 1]]

    def head(self, features):
        return features


def state_number(z):
    return int(z[0]) * 3 + int(z[1])


def cases(t, dt, num_steps):
    """Every corruption, every set of steps at which positions are revealed and every draw, with their probability.

    Returns:
        States, masked positions before each step, uniform numbers and probabilities.
    """
    times = [max(t - k * dt, 0) for k in range(num_steps)]
    edges = [1.0, *times, 0.0]  # a position whose number lies in [times[k + 1], times[k]) is revealed at step k
    numbers = [(low + high) / 2 for high, low in itertools.pairwise(edges)]
    widths = [high - low for high, low in itertools.pairwise(edges)]
    draws = torch.tensor(list(itertools.product([0.125, 0.375, 0.625, 0.875], repeat=2 * (num_steps - 1))))
    draws = draws.double().view(len(draws), num_steps - 1, 2)
    outcomes = []
    for (x0, prob), pair in itertools.product(
        zip(CLEAN, DATA, strict=True), itertools.product(range(len(numbers)), repeat=2)
    ):
        if not (weight := prob * widths[pair[0]] * widths[pair[1]]):
            continue
        u = torch.tensor([numbers[n] for n in pair])
        is_masked = torch.stack([u < time for time in times])
        for uniforms in draws:
            outcomes.append((x0.where(~is_masked[0], MASK), is_masked, uniforms, weight / len(draws)))
    z, is_masked, uniforms, weights = zip(*outcomes, strict=True)
    return torch.stack(z), torch.stack(is_masked, 1), torch.stack(uniforms, 1), torch.stack(weights)


def expected_loss_of_the_code(student, kind, t, dt, num_steps):
    """Expected sum of losses over masked positions, from the functions of the method."""
    z, is_masked, uniforms, weights = cases(t, dt, num_steps)
    is_target_step = target_steps(is_masked)
    times = step_times(torch.full((len(z),), t, dtype=torch.float64), dt, num_steps)
    target = teacher_targets(TableDenoiser(TEACHER.log()), PROCESS, z, times, is_target_step, uniforms)
    of_student = log_probs_where(TableDenoiser(student), PROCESS, z, times[0], is_masked[0])
    losses = distillation_loss(kind, target, of_student)
    return (losses * weights[is_masked[0].nonzero()[:, 0]]).sum()


def targets_by_hand(z, t, dt, num_steps, teacher):
    """Pairs of a probability and the targets of all positions, by recursion over the teacher's steps."""
    masked = [n for n in range(2) if z[n] == MASK]
    probs = teacher[state_number(z)]
    if num_steps == 1:
        return [(1.0, {n: probs[n] for n in masked})]
    chance, pairs = min(1.0, dt / t), []
    for revealed in itertools.product([False, True], repeat=len(masked)):
        now = [n for n, is_now in zip(masked, revealed, strict=True) if is_now]
        weight = chance ** len(now) * (1 - chance) ** (len(masked) - len(now))
        for tokens in itertools.product(range(2), repeat=len(now)):
            after, drawn = z.clone(), weight
            for n, token in zip(now, tokens, strict=True):
                after[n], drawn = token, drawn * float(probs[n, token])
            if drawn:
                for later, rest in targets_by_hand(after, t - dt, dt, num_steps - 1, teacher):
                    pairs.append((drawn * later, {n: probs[n] for n in now} | rest))
    return pairs


def expected_loss_by_hand(student, kind, t, dt, num_steps, teacher=TEACHER):
    total = torch.zeros((), dtype=torch.float64)
    for x0, prob in zip(CLEAN, DATA, strict=True):
        for pattern in itertools.product([False, True], repeat=2):
            z = x0.where(~torch.tensor(pattern), MASK)
            weight = prob * t ** sum(pattern) * (1 - t) ** (2 - sum(pattern))
            p = student[state_number(z)].softmax(-1)
            for chance, targets in targets_by_hand(z, t, dt, num_steps, teacher):
                total = total + weight * chance * sum(LOSSES[kind](q, p[n]) for n, q in targets.items())
    return total


def gradient(function, *args):
    table = STUDENT.clone().requires_grad_(True)
    (of_logits,) = torch.autograd.grad(function(table, *args), table)
    return of_logits


@pytest.mark.parametrize("kind", LOSSES)
def test_the_expected_gradient_is_that_of_the_enumerated_loss(kind):
    actual = gradient(expected_loss_of_the_code, kind, 0.7, 0.25, 2)
    expected = gradient(expected_loss_by_hand, kind, 0.7, 0.25, 2)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("t", "dt", "num_steps"), [(0.9, 0.25, 3), (0.2, 0.25, 2), (0.9, 0.5, 3), (0.7, 0.1, 1)])
def test_the_gradient_is_right_for_any_number_of_steps_and_for_steps_cut_at_time_0(t, dt, num_steps):
    actual = gradient(expected_loss_of_the_code, "kl", t, dt, num_steps)
    torch.testing.assert_close(actual, gradient(expected_loss_by_hand, "kl", t, dt, num_steps), rtol=0, atol=1e-6)


def test_one_step_is_plain_distillation_of_the_teachers_prediction():
    is_masked = STATES == MASK
    t = torch.full((9,), 0.5, dtype=torch.float64)
    target = teacher_targets(
        TableDenoiser(TEACHER.log()), PROCESS, STATES, t[None], target_steps(is_masked[None]), torch.empty(0, 9, 2)
    )
    torch.testing.assert_close(target[:, :2].exp().double(), TEACHER[is_masked])
    actual = gradient(expected_loss_of_the_code, "forward-kl", 0.7, 0.25, 1)

    def plain(table):
        weights = DATA @ torch.where(CLEAN[:, None] == STATES, 0.3, 0.7 * is_masked.double()).prod(-1)
        gaps = divergence("forward", TEACHER.log(), table.log_softmax(-1))
        return (weights[:, None] * gaps * is_masked).sum()

    torch.testing.assert_close(actual, gradient(plain), rtol=0, atol=1e-6)


def test_each_step_predicts_its_positions_at_its_time():
    # Row 0: both positions revealed, one at each step. Row 1: the first step reveals nothing. Row 2: nothing is masked.
    z = torch.tensor([[MASK, MASK], [1, MASK], [0, 1]])
    is_masked = torch.tensor([[[1, 1], [0, 1], [0, 0]], [[0, 1], [0, 1], [0, 0]]]).bool()
    times = torch.tensor([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]], dtype=torch.float64)
    teacher = TableDenoiser(TEACHER.log())
    uniforms = torch.full((1, 3, 2), 0.999, dtype=torch.float64)  # draws symbol 1
    target = teacher_targets(teacher, PROCESS, z, times, target_steps(is_masked), uniforms)
    (first, level), (second, later) = teacher.passes
    assert torch.equal(first, z[:1])
    assert torch.equal(second, torch.tensor([[1, MASK], [1, MASK]]))
    torch.testing.assert_close(level, PROCESS.noise_level(teacher, times[0, :1]))
    torch.testing.assert_close(later, PROCESS.noise_level(teacher, times[1, :2]))
    expected = TEACHER[[8, 5, 5], [0, 1, 1]]
    torch.testing.assert_close(target[:, :2].exp().double(), expected)


def test_without_masks_there_are_no_targets():
    is_target_step = torch.zeros(2, 1, 2, dtype=torch.bool)
    arguments = (
        CLEAN[:1],
        torch.zeros(2, 1, dtype=torch.float64),
        is_target_step,
        torch.zeros(1, 1, 2, dtype=torch.float64),
    )
    assert teacher_targets(TableDenoiser(TEACHER.log()), PROCESS, *arguments).shape == (0, 3)


def test_every_masked_position_has_one_target():
    u, levels = torch.rand(50, 6), torch.tensor([0.9, 0.5, 0.2])
    is_masked = u < levels[:, None, None]
    is_target = target_steps(is_masked)
    assert torch.equal(is_target.sum(0), is_masked[0].long())
    assert torch.equal(is_target[0], (u >= 0.5) & (u < 0.9))
    assert torch.equal(is_target[2], u < 0.2)


def test_each_round_multiplies_the_step_by_the_number_of_teacher_steps():
    assert [1 / step_size(number, 1024, 2) for number in range(7)] == [1024, 512, 256, 128, 64, 32, 16]
    assert 1 / step_size(2, 27, 3) == 3
    times = step_times(torch.tensor([0.9, 0.1]), 0.25, 3)
    torch.testing.assert_close(times, torch.tensor([[0.9, 0.1], [0.65, 0.0], [0.4, 0.0]]))


def test_an_unknown_loss_is_refused(unchecked):
    with pytest.raises(UsageError, match=r"^loss is one of kl, forward-kl, mse, tv; got 'l2'$"):
        distillation_loss("l2", torch.zeros(1, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("loss", ["kl", "forward-kl"])
def test_the_fixed_point_of_a_teacher_of_independent_positions_is_the_teacher(loss):
    states = States(3, 3)
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], dtype=torch.float64)
    table = exact_sdtt.fixed_point(states, probs.expand(len(states), 3, 3), rounds=2, first_step=4, loss=loss)
    row, position = states.is_masked.nonzero(as_tuple=True)
    torch.testing.assert_close(table[row, position], probs[position])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kl", "forward-kl"])
def test_the_fixed_point_minimises_the_expected_loss_of_each_round(loss, monkeypatch):
    num = 8
    monkeypatch.setattr(exact_sdtt, "NUM_TIMES", num)
    times = [(n + 0.5) / num for n in range(num)]  # the first lie below the step
    teacher = TEACHER
    for rounds, dt in ((1, 0.25), (2, 0.5)):
        fixed_point = exact_sdtt.fixed_point(ALL_STATES, TEACHER, rounds=rounds, first_step=4, loss=loss)
        table = fixed_point.clamp_min(1e-9).log().requires_grad_(True)  # visible positions are 0
        value = sum(expected_loss_by_hand(table, loss, t, dt, 2, teacher) for t in times)
        assert torch.autograd.grad(value, table)[0].abs().max() < 1e-12
        assert (fixed_point - teacher).abs().max() > 0.005
        teacher = fixed_point


def test_reveal_weights_average_over_the_times_of_a_state_given_its_number_of_masks():
    t = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    given_masks = torch.distributions.Binomial(3, t).log_prob(torch.tensor(2.0)).exp()
    chance = (0.25 / t).clamp(max=1)
    for size, number in ((0, 1), (1, 2), (2, 1)):
        revealed = torch.distributions.Binomial(2, chance, validate_args=False).log_prob(torch.tensor(float(size)))
        expected = (given_masks * revealed.exp().nan_to_num()).sum() / given_masks.sum() / number
        assert exact_sdtt.reveal_weights(2, 3, 0.25)[size] == pytest.approx(float(expected), abs=1e-9)


def test_the_fixed_point_of_other_losses_is_refused(unchecked):
    with pytest.raises(UsageError, match="losses kl and forward-kl; got 'tv'"):
        exact_sdtt.fixed_point(ALL_STATES, TEACHER, rounds=1, first_step=2, loss="tv")
