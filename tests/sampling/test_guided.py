"""Reward-guided sampling of masked diffusion against exact distributions, and its counts of passes."""

import itertools

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.schedule import schedule_from_name
from didi.sampling import guided
from didi.sampling.guided import Guidance, Guided

NUM = 3000
LOG_LINEAR = Absorbing(3)
SCORES = [0.8, -0.5, 0.2, 0.0]


@pytest.mark.parametrize(
    "process", [LOG_LINEAR, Absorbing(3, schedule_from_name("cosine"))], ids=["log-linear", "cosine"]
)
def test_without_tilt_and_with_one_candidate_the_distribution_is_ancestral(
    enumerated, tabular, linear_discriminator, draw, chi_square, process
):
    sampler = Guided(
        tabular(enumerated.table), process, linear_discriminator(SCORES), Guidance(guidance_scale=0.0, num_candidates=1)
    )
    _, drawn = draw(sampler, num=NUM, nfe=4)
    assert chi_square(drawn, enumerated.sample_probs([enumerated.table] * 4, process)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("select", ["sample", "best"])
def test_a_constant_discriminator_does_not_change_the_distribution(
    enumerated, tabular, linear_discriminator, draw, chi_square, select
):
    sampler = Guided(tabular(enumerated.table), LOG_LINEAR, linear_discriminator([0.3] * 4), Guidance(select=select))
    _, drawn = draw(sampler, num=NUM, nfe=4)
    assert chi_square(drawn, enumerated.sample_probs([enumerated.table] * 4, LOG_LINEAR)) > 1e-3


def tilted_tables(enumerated, scale, clamp, num_moves):
    """The logits plus h times the clamped gradient of minus the mean score, for each move."""
    probs = enumerated.table[..., :3].softmax(-1)
    scores = torch.tensor(SCORES[:3])
    gradient = -probs * (scores - (probs * scores).sum(-1, keepdim=True))
    tilt = torch.cat([gradient.clamp(-clamp, clamp), torch.zeros(16, 2, 1)], dim=-1)
    return [enumerated.table + scale * move / (num_moves - 1) * tilt for move in range(num_moves)]


@pytest.mark.parametrize(("scale", "clamp"), [(4.0, 1.0), (30.0, 0.05)])
def test_tilted_moves_follow_the_exact_tilted_distribution(
    enumerated, tabular, linear_discriminator, draw, chi_square, scale, clamp
):
    guidance = Guidance(guidance_scale=scale, gradient_clamp=clamp, tilted_fraction=1.0)
    sampler = Guided(tabular(enumerated.table), LOG_LINEAR, linear_discriminator(SCORES), guidance)
    _, drawn = draw(sampler, num=NUM, nfe=4)
    expected = enumerated.sample_probs(tilted_tables(enumerated, scale, clamp, 4), LOG_LINEAR)
    assert chi_square(drawn, expected) > 1e-3
    plain = enumerated.sample_probs([enumerated.table] * 4, LOG_LINEAR)
    log_ratio = torch.tensor(SCORES, dtype=torch.float64)[enumerated.CLEAN].sum(1)
    assert expected @ log_ratio < plain @ log_ratio - 0.1  # the tilt raises the reward
    assert chi_square(drawn, plain) < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_re_ranking_follows_the_exact_softmax_over_candidates(
    enumerated, tabular, linear_discriminator, draw, chi_square, temperature
):
    # One move, so that a candidate is a pair of independent clean tokens; two candidates, 81 pairs of them.
    guidance = Guidance(tilted_fraction=0.0, num_candidates=2, rank_temperature=temperature)
    _, drawn = draw(
        Guided(tabular(enumerated.table), LOG_LINEAR, linear_discriminator(SCORES), guidance), num=NUM, nfe=1
    )
    plain = enumerated.sample_probs([enumerated.table], LOG_LINEAR)
    reward = -torch.tensor(SCORES, dtype=torch.float64)[enumerated.CLEAN].sum(1) / temperature
    expected = torch.zeros(9, dtype=torch.float64)
    for first, second in itertools.product(range(9), repeat=2):
        shares = reward[[first, second]].softmax(0)
        expected[[first]] += plain[first] * plain[second] * shares[0]
        expected[[second]] += plain[first] * plain[second] * shares[1]
    assert chi_square(drawn, expected) > 1e-3
    assert chi_square(drawn, plain) < 1e-6


@pytest.mark.parametrize("reduction", ["sum", "mean", "masked-mean"])
def test_best_takes_the_candidate_of_the_lowest_log_ratio(enumerated, tabular, linear_discriminator, draw, reduction):
    guidance = Guidance(tilted_fraction=0.0, num_candidates=5, select="best", reduction=reduction)
    discriminator = linear_discriminator([*SCORES[:3], 0.9])
    steps, _ = draw(Guided(tabular(enumerated.table), LOG_LINEAR, discriminator, guidance), num=30, nfe=2)
    for step, (one_hot, _) in zip(steps, discriminator.inputs, strict=True):
        is_active = step.network_passes == 1
        candidates = one_hot.argmax(-1).view(-1, 5, 2)
        logits = discriminator.scores[candidates]
        is_counted = torch.ones_like(candidates, dtype=torch.bool)
        if reduction == "masked-mean":
            masks = candidates == enumerated.MASK
            is_counted = masks | ~masks.any(-1, keepdim=True)
        ratios = torch.where(is_counted, logits, 0.0).sum(-1)
        ratios = ratios if reduction == "sum" else ratios / is_counted.sum(-1)
        chosen = (candidates == step.z[is_active][:, None]).all(-1)
        assert torch.allclose(torch.where(chosen, ratios, torch.inf).amin(1), ratios.amin(1))
        assert (ratios.amax(1) > ratios.amin(1)).any()


def test_re_ranking_reads_the_noise_level_of_the_state_after_the_move(enumerated, tabular, linear_discriminator, draw):
    discriminator = linear_discriminator(SCORES)
    draw(Guided(tabular(enumerated.table), LOG_LINEAR, discriminator, Guidance(tilted_fraction=0.0)), num=20, nfe=2)
    for (_, sigma), level in zip(discriminator.inputs, (-torch.tensor([0.5, 1.0]).log()), strict=True):
        torch.testing.assert_close(sigma, level.expand_as(sigma))


def test_tilting_reads_the_noise_level_of_the_state_before_the_move(enumerated, tabular, linear_discriminator, draw):
    for is_time_conditioned in (True, False):
        discriminator = linear_discriminator(SCORES, is_time_conditioned=is_time_conditioned)
        draw(Guided(tabular(enumerated.table), LOG_LINEAR, discriminator, Guidance(tilted_fraction=1.0)), num=20, nfe=2)
        ((simplex, sigma),) = discriminator.inputs  # the first move has h = 0
        if is_time_conditioned:
            torch.testing.assert_close(sigma, torch.full_like(sigma, 0.5).log().neg())
        else:
            assert sigma is None
        torch.testing.assert_close(simplex.sum(-1), torch.ones(simplex.shape[:2]))
        assert (simplex[..., enumerated.MASK] == 0).all()


def test_tilting_reads_the_distribution_of_positions_that_stay_masked(enumerated, tabular, linear_discriminator, draw):
    discriminator = linear_discriminator(SCORES)
    sampler = Guided(tabular(enumerated.table), LOG_LINEAR, discriminator, Guidance(tilted_fraction=1.0))
    steps, _ = draw(sampler, num=60, nfe=3)
    simplex, _ = discriminator.inputs[0]  # of the second move
    before, after, is_active = steps[0].z, steps[1].z, steps[1].network_passes == 1
    stays = (after == enumerated.MASK)[is_active]
    expected = enumerated.table[enumerated.state_index(before[is_active])][..., :3].softmax(-1)
    assert 10 < stays.sum() < 60
    torch.testing.assert_close(simplex[stays][:, :3], expected[stays])
    is_visible = (before != enumerated.MASK)[is_active]
    assert torch.equal(simplex[is_visible].argmax(-1), before[is_active][is_visible])


def test_computing_mean_embeddings_in_parts_does_not_change_samples(make_dit, make_discriminator, draw, monkeypatch):
    denoiser = make_dit(seed=4)
    sampler = Guided(denoiser, LOG_LINEAR, make_discriminator(denoiser), Guidance(tilted_fraction=1.0))
    drawn = []
    for num_rows in (3, 10**6):
        monkeypatch.setattr(guided, "MEAN_ROWS", num_rows)
        drawn.append(draw(sampler, num=40, nfe=4)[1])
    assert torch.equal(*drawn)


def test_every_pass_is_counted(enumerated, tabular, linear_discriminator, draw):
    # 8 moves: h = 0 in the first, tilted in the next 3 (a forward and a backward pass), M = 3 candidates in the last 4.
    denoiser, discriminator = tabular(enumerated.table), linear_discriminator(SCORES)
    guidance = Guidance(num_candidates=3, tilted_fraction=0.5)
    steps, _ = draw(Guided(denoiser, LOG_LINEAR, discriminator, guidance), num=40, nfe=8)
    for move, step in enumerate(steps):
        per_pass = 0 if move == 0 else 2 if move < 4 else 3
        assert torch.equal(step.discriminator_passes, per_pass * step.network_passes)
        assert (step.network_passes >= step.is_changed.any(1)).all()
        if move < 4:  # a candidate that was not chosen costs a pass as well
            assert torch.equal(step.network_passes, step.is_changed.any(1).long())
    passes = [int(step.network_passes.sum()) for step in steps if step.network_passes.any()]
    assert denoiser.trunk_rows[0] == 1
    assert denoiser.trunk_rows[1:] == passes[1:]
    scored = [len(inputs) for inputs, _ in discriminator.inputs]
    forwards = [int(step.discriminator_passes.sum()) // (2 if move < 4 else 1) for move, step in enumerate(steps)]
    assert scored == [number for number in forwards if number]


def test_a_single_candidate_needs_no_discriminator(enumerated, tabular, linear_discriminator, draw):
    discriminator = linear_discriminator(SCORES)
    guidance = Guidance(tilted_fraction=0.0, num_candidates=1)
    steps, _ = draw(Guided(tabular(enumerated.table), LOG_LINEAR, discriminator, guidance), num=10, nfe=4)
    assert not discriminator.inputs
    assert not any(step.discriminator_passes.any() for step in steps)


def test_visible_positions_are_kept(enumerated, tabular, linear_discriminator, draw):
    start = torch.tensor([[1, enumerated.MASK], [enumerated.MASK, 2], [0, 0]]).repeat(20, 1)
    sampler = Guided(tabular(enumerated.table), LOG_LINEAR, linear_discriminator(SCORES))
    steps, _ = draw(sampler, num=60, nfe=6, z=start)
    visible = start != enumerated.MASK
    assert torch.equal(steps[-1].z[visible], start[visible])
    assert not any(step.network_passes[2::3].any() for step in steps)


@torch.no_grad()
def test_a_sequence_discriminator_can_guide(make_dit, make_discriminator, draw):
    denoiser = make_dit(seed=4)
    discriminator = make_discriminator(denoiser, output="sequence", is_time_conditioned=False)
    ratios = []
    for num_candidates in (1, 8):
        guidance = Guidance(tilted_fraction=0.0, num_candidates=num_candidates, select="best")
        steps, _ = draw(Guided(denoiser, LOG_LINEAR, discriminator, guidance), num=100, nfe=1)
        ratios.append(float(discriminator(steps[-1].z).mean()))
        assert steps[-1].discriminator_passes.tolist() == [0 if num_candidates == 1 else 8] * 100
    assert ratios[1] < ratios[0]  # guidance chooses candidates of a low log-ratio


def test_the_released_sampler_multiplies_summed_logits_by_the_guidance_scale(enumerated, tabular, linear_discriminator):
    sampler = Guided(tabular(enumerated.table), LOG_LINEAR, linear_discriminator(SCORES), Guidance.released())
    log_weights = sampler.log_weights(enumerated.CLEAN, Canvas.free(enumerated.CLEAN), torch.tensor(0.0))
    torch.testing.assert_close(log_weights, -40 * torch.tensor(SCORES)[enumerated.CLEAN].sum(1))


def test_the_tilt_rises_from_zero_over_the_first_moves():
    guidance = Guidance(guidance_scale=30.0, tilted_fraction=0.5)
    assert guidance.scales(8) == [0, 10, 20, 30]
    assert guidance.scales(1) == []
    assert Guidance(tilted_fraction=0.0).scales(8) == []
