"""Score networks (SEDD) against networks that predict x0, enumerated for three symbols."""

import math
from types import SimpleNamespace

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import LogLinear, schedule_from_name
from didi.diffusion.score import ScoreAbsorbing, ScoreProcess, ScoreUniform
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError

NUM, MASK = 3, 3
EPS = schedule_from_name("log-linear-eps")
ALL = torch.arange(NUM)


def logits_of(*shape):
    return torch.randn(*shape, generator=named_generator("score"), dtype=torch.float64)


def score_of(log_probs, z, alpha):
    """log s_j of uniform-state diffusion whose prediction is ``log_probs`` [n, v]."""
    theta = NUM * alpha * log_probs.exp() + 1 - alpha
    return (theta / theta.gather(1, z[:, None])).log()


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("process", [ScoreAbsorbing(MASK), ScoreUniform(NUM)])
def test_a_score_process_meets_its_protocol(process):
    assert isinstance(process, ScoreProcess)
    assert not isinstance(Uniform(NUM), ScoreProcess)


def test_normalised_scores_have_the_loss_of_masked_diffusion():
    logits, x0, z = logits_of(3, 4), torch.tensor([[0, 1, 2]]), torch.full((1, 3), MASK)
    logits[:, MASK] = 50  # never read
    normalised = logits[:, :NUM].log_softmax(-1) + math.log(NUM)
    scores = torch.cat([normalised, logits[:, NUM:]], 1).float()
    t = times(0.4)
    expected = Absorbing(MASK).loss_terms(scores, x0, z, t)
    torch.testing.assert_close(ScoreAbsorbing(MASK).loss_terms(scores, x0, z, t), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(ScoreAbsorbing(MASK).loss_weight(t), Absorbing(MASK).loss_weight(t))


def test_the_optimum_of_sedd_absorb_is_the_masked_model():
    target = torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64)
    logits = torch.zeros(NUM, NUM + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10)

    def loss():
        optimizer.zero_grad()
        value = (target * ScoreAbsorbing(MASK).token_losses(logits[:1].expand(NUM, -1), ALL)).sum()
        value.backward()
        return value

    optimizer.step(loss)
    ratios = logits[0, :NUM].detach().exp() / NUM
    torch.testing.assert_close(ratios, target, rtol=0, atol=1e-5)
    torch.testing.assert_close(float(loss().detach()), -float((target * target.log()).sum()), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.0, 0.4), (0.3, 0.5), (0.3, 1.0)])
def test_the_analytic_step_of_a_normalised_score_is_the_posterior(alpha_t, alpha_s):
    log_probs = logits_of(4, NUM).log_softmax(-1)
    masked = torch.cat([log_probs + math.log(NUM), torch.full((4, 1), 9.0, dtype=torch.float64)], 1)
    z = torch.full((4,), MASK)
    actual = ScoreAbsorbing(MASK).reverse_weights(masked, z, alpha_t, alpha_s)
    expected = Absorbing(MASK).reverse_weights(masked, z, alpha_t, alpha_s)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(expected.sum(1), torch.ones(4, dtype=torch.float64))
    if alpha_t:
        z = torch.tensor([0, 1, 2, 2])
        actual = ScoreUniform(NUM).reverse_weights(score_of(log_probs, z, alpha_t), z, alpha_t, alpha_s)
        expected = Uniform(NUM).reverse_weights(log_probs, z, alpha_t, alpha_s)
        assert (expected > 0).all()
        torch.testing.assert_close(*(weights / weights.sum(1, keepdim=True) for weights in (actual, expected)))


def test_reverse_weights_are_the_posterior():
    t, s, z = times(0.8), times(0.3), torch.tensor([[0, 2, 1]])
    logits = logits_of(3, NUM)
    for process in (Uniform(NUM), Uniform(NUM, schedule_from_name("cosine"))):
        alpha_t, alpha_s = (float(process.schedule.alpha(time)) for time in (t, s))
        actual = process.reverse_weights(logits, z[0], alpha_t, alpha_s)
        expected = process.posterior(z, logits.log_softmax(-1)[None], t, s)[0]
        torch.testing.assert_close(actual / actual.sum(1, keepdim=True), expected)
    with_mask = torch.cat([logits, torch.full((3, 1), 9.0, dtype=torch.float64)], 1)
    masks, process = torch.full((1, 3), MASK), Absorbing(MASK)
    expected = process.posterior(masks, process.log_probs(with_mask)[None], t, s)[0]
    torch.testing.assert_close(process.reverse_weights(with_mask, masks[0], 0.2, 0.7), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("t", [0.01, 0.3, 0.9, 0.999])
def test_score_entropy_equals_the_loss_of_the_equivalent_prediction(t):
    z, x0 = torch.cartesian_prod(ALL, ALL).T
    log_probs = logits_of(len(z), NUM).log_softmax(-1)
    uniform, score = Uniform(NUM, EPS), ScoreUniform(NUM)
    time = times(t)
    alpha = float(EPS.alpha(time))
    expected = uniform.loss_terms(log_probs, x0[None], z[None], time)
    scores = score_of(log_probs, z, alpha).scatter(1, z[:, None], 7.0)  # the score at the state is not read
    actual = score.loss_terms(scores, x0[None], z[None], time)
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-6)
    assert (actual > 0).all()


def test_score_entropy_follows_its_definition():
    z, x0 = torch.cartesian_prod(ALL, ALL).T
    log_s, alpha = logits_of(len(z), NUM), 0.35
    actual = ScoreUniform(NUM, LogLinear("log-linear-eps", 1e-3)).loss_terms(
        log_s, x0[None], z[None], times((1 - alpha) / (1 - 1e-3))
    )[0]
    for row, (state, clean) in enumerate(zip(z.tolist(), x0.tolist(), strict=True)):
        q = [alpha * (j == clean) + (1 - alpha) / NUM for j in range(NUM)]
        total = 0.0
        for j in set(range(NUM)) - {state}:
            r, value = q[j] / q[state], float(log_s[row, j])
            total += (math.exp(value) - r * value + r * (math.log(r) - 1)) / NUM
        assert float(actual[row]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("t", [0.2, 0.9])
def test_euler_steps_approach_analytic_ones(t):
    z = torch.tensor([0, 1, 2, 2])
    masks = torch.full((4,), MASK)
    absorbing = ScoreAbsorbing(MASK, schedule_from_name("cosine"))  # log-linear: both steps are equal
    for process, state, size in ((ScoreUniform(NUM), z, NUM), (absorbing, masks, NUM + 1)):
        logits, errors = logits_of(4, size), []
        for step in (1e-2, 1e-3):
            alpha_t, alpha_s = (float(process.schedule.alpha(times(time))) for time in (t, t - step))
            euler = process.euler_weights(logits, state, t, t - step)
            analytic = process.reverse_weights(logits, state, alpha_t, alpha_s)
            euler, analytic = (weights / weights.sum(1, keepdim=True) for weights in (euler, analytic))
            errors.append(float((euler - analytic).abs().max()))
        assert errors[1] < 0.02 * errors[0]  # of second order


def test_weights_are_never_negative_and_the_last_step_leaves_no_mask():
    logits = torch.tensor([[8.0, 8.0, -30.0, 5.0]])
    z = torch.tensor([MASK])
    for weights in (
        ScoreAbsorbing(MASK).reverse_weights(logits, z, 0.1, 0.9),
        ScoreAbsorbing(MASK).euler_weights(logits, z, 0.9, 0.1),
        ScoreUniform(4).reverse_weights(logits, z, 0.1, 0.9),
        ScoreUniform(4).euler_weights(logits, z, 0.9, 0.1),
    ):
        assert (weights >= 0).all()
        assert weights.sum() > 0
    assert ScoreAbsorbing(MASK).reverse_weights(-logits, z, 0.1, 1.0)[0, MASK] == 0
    # The scores of the tokens, exp(logit) / 3, sum to 0.75, so a mask is revealed with probability 0.75 * 0.4.
    three_quarters = torch.full((1, 4), math.log(0.75), dtype=torch.float64)
    assert float(ScoreAbsorbing(MASK).reverse_weights(three_quarters, z, 0.0, 0.4)[0, MASK]) == pytest.approx(0.7)


def test_the_bound_includes_the_divergence_from_the_prior():
    q = torch.tensor([1e-3 + (1 - 1e-3) / NUM, *[(1 - 1e-3) / NUM] * 2], dtype=torch.float64)
    expected = float((q * (q * NUM).log()).sum())
    drawn = ScoreUniform(NUM).elbo_draws(Canvas.blank(2, 3), 4, [named_generator(seed) for seed in range(2)])
    assert drawn.prior_divergence == pytest.approx(expected, rel=1e-9)
    assert Uniform(NUM).prior_divergence() == 0
    assert Uniform(NUM, EPS).prior_divergence() == drawn.prior_divergence


def test_a_schedule_that_ends_at_0_and_log_probabilities_of_a_score_network_are_refused():
    with pytest.raises(UsageError, match="ends above 0; cosine ends at 0: set schedule to log-linear-eps"):
        ScoreUniform(NUM, schedule_from_name("cosine"))
    with pytest.raises(UsageError, match="give scores"):
        ScoreUniform(NUM).log_probs(torch.zeros(1, NUM))


def test_scores_of_any_magnitude_give_finite_weights():
    z = torch.tensor([1])
    for logits in (torch.tensor([[100.0, 0.0, -100.0, 0.0]]), torch.tensor([[-90.0, 60.0, -90.0, -90.0]])):
        for process in (ScoreUniform(4), ScoreAbsorbing(MASK)):
            for weights in (
                process.reverse_weights(logits, z, 0.3, 0.6),
                process.euler_weights(logits, z, 0.7, 0.4),
            ):
                assert weights.isfinite().all()
                assert (weights >= 0).all()
                assert weights.sum() > 0
    actual = ScoreUniform(3).euler_weights(torch.tensor([[3.0, 7.0, 1.0]], dtype=torch.float64), z, 0.5, 0.49)
    jumps = [0.01 * 0.999 / (1 - 0.999 * 0.5) / 3 * math.exp(log_score) for log_score in (3, 1)]
    expected = torch.tensor([[jumps[0], 1 - sum(jumps), jumps[1]]], dtype=torch.float64)
    torch.testing.assert_close(actual / actual.sum(), expected)


@pytest.mark.parametrize("name", ["log-linear-eps", "geometric", "geometric-1e-4"])
def test_the_noise_level_follows_the_schedule_up_to_its_end(name):
    t, network = times(0.5, 0.95, 1.0), SimpleNamespace(is_time_conditioned=True)
    for process in (ScoreUniform(NUM, schedule_from_name(name)), ScoreAbsorbing(MASK, schedule_from_name(name))):
        torch.testing.assert_close(process.noise_level(network, t), -process.schedule.alpha(t).log().float())
