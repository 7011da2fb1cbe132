"""Ancestral sampling and tau-leaping of masked diffusion: distributions, network passes and time grids."""

import itertools

import pytest
import torch

from didi.diffusion.absorbing import Absorbing, reveal_probability, token_log_probs
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_categorical
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import schedule_from_name
from didi.errors import UsageError
from didi.sampling.ancestral import Ancestral
from didi.sampling.base import alpha_at, given_times, shared_rows, time_grid
from didi.sampling.published import Published

NUM = 3000
LOG_LINEAR = Absorbing(3)


@pytest.fixture(params=["log-linear", "cosine", "geometric"])
def process(request):
    return Absorbing(3, schedule_from_name(request.param))


@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_samples_follow_the_exact_distribution_of_the_moves(enumerated, tabular, draw, chi_square, process, nfe):
    expected = enumerated.sample_probs([enumerated.table] * nfe, process)
    _, drawn = draw(Ancestral(tabular(enumerated.table), process), num=NUM, nfe=nfe)
    assert chi_square(drawn, expected) > 1e-3
    if nfe == 4:  # so a sampler with another number of moves would fail the test
        assert chi_square(drawn, enumerated.sample_probs([enumerated.table], process)) < 1e-3


@torch.no_grad()
def test_samples_of_a_transformer_follow_its_distribution(enumerated, make_dit, draw, chi_square):
    network = make_dit(seed=4)
    expected = enumerated.sample_probs([network(enumerated.STATES)] * 2, LOG_LINEAR)
    _, drawn = draw(Ancestral(network, LOG_LINEAR), num=6000, nfe=2)
    assert chi_square(drawn, expected) > 1e-3


@pytest.mark.slow
def test_many_moves_of_the_exact_posterior_give_the_data_distribution(enumerated, tabular, draw, chi_square):
    # With probability 1/256 both tokens are revealed in the same move, and so drawn independently of each other.
    sampler = Ancestral(tabular(enumerated.exact_table()), LOG_LINEAR)
    _, drawn = draw(sampler, num=1500, nfe=256)
    assert chi_square(drawn, enumerated.data_probs) > 1e-3
    _, drawn = draw(sampler, num=1500, nfe=1)
    assert chi_square(drawn, enumerated.data_probs) < 1e-6


@pytest.mark.parametrize("nfe", [1, 4, 16])
def test_the_head_reads_each_position_once_and_the_first_trunk_pass_is_one_row(enumerated, tabular, draw, nfe):
    denoiser = tabular(enumerated.table)
    steps, _ = draw(Ancestral(denoiser, LOG_LINEAR), num=50, nfe=nfe)
    assert sum(denoiser.head_rows) == 50 * 2
    before = [torch.full((50, 2), enumerated.MASK)] + [step.z for step in steps[:-1]]
    read = [z[step.network_passes == 1] for z, step in zip(before, steps, strict=True)]
    # One row while all sequences are in the first state; then a row for each sequence that reveals a position.
    assert denoiser.trunk_rows == [1, *[len(z) for z in read if len(z)][1:]]
    assert len(read[0]) > 1


def test_a_move_that_reveals_nothing_needs_no_pass(enumerated, tabular, draw):
    denoiser = tabular(enumerated.table)
    steps, _ = draw(Ancestral(denoiser, LOG_LINEAR), num=1, nfe=64)
    for step in steps:
        assert step.network_passes.tolist() == [int(step.is_changed.any())]
        assert step.discriminator_passes.tolist() == [0]
    assert sum(int(step.network_passes) for step in steps) == len(denoiser.trunk_rows) <= 2


@torch.no_grad()
def test_the_head_at_revealed_positions_draws_the_same_tokens_as_the_full_head(make_dit, canvas_of):
    network, num, length, nfe = make_dit(vocab_size=9, length=12, seed=1), 6, 12, 5
    start = torch.full((num, length), network.mask_id)
    times = time_grid(nfe)
    lazy = [
        step.z
        for step in Ancestral(network, Absorbing(network.mask_id))(
            canvas_of(start, network.mask_id), times, SequenceNoise(3, range(num))
        )
    ]
    reveal_at, uniforms = SequenceNoise(3, range(num)).uniforms(2, length).unbind(1)
    z = start
    for s, actual in zip(times[1:], lazy, strict=True):
        is_revealed = (z == network.mask_id) & (reveal_at >= s)
        everywhere = token_log_probs(network(z), network.mask_id).flatten(0, 1)
        drawn = sample_categorical(everywhere, uniforms.flatten()).view(num, length)
        z = torch.where(is_revealed, drawn, z)
        assert torch.equal(actual, z)


def test_visible_positions_are_kept_and_steps_report_changes(enumerated, tabular, draw):
    start = torch.tensor([[1, enumerated.MASK], [enumerated.MASK, 2], [0, 0]]).repeat(20, 1)
    for sampler in (Ancestral, Published):
        steps, _ = draw(sampler(tabular(enumerated.table), LOG_LINEAR), num=60, nfe=4, z=start)
        z = start
        for step in steps:
            assert torch.equal(step.is_changed, step.z != z)
            assert (z[step.is_changed] == enumerated.MASK).all()
            z = step.z
        assert [step.t for step in steps] == [0.75, 0.5, 0.25, 0.0]
        assert not any(step.network_passes[2::3].any() for step in steps)


def test_samples_follow_the_conditional_distribution_given_a_token(enumerated, tabular, draw, chi_square):
    _, drawn = draw(
        Ancestral(tabular(enumerated.exact_table()), LOG_LINEAR),
        num=NUM,
        nfe=3,
        z=torch.tensor([[1, enumerated.MASK]]).repeat(NUM, 1),
    )
    posterior = torch.where(enumerated.CLEAN[:, 0] == 1, enumerated.data_probs, 0.0)
    assert chi_square(drawn, posterior) > 1e-3


def test_a_network_conditioned_on_time_reads_the_noise_level_of_each_move(enumerated, tabular, draw):
    class Timed(tabular):
        is_time_conditioned = True
        levels = ()

        def features(self, inputs, sigma=None, attention_mask=None):
            self.levels += (sigma,)
            return super().features(inputs, sigma, attention_mask)

    denoiser = Timed(enumerated.table)
    draw(Ancestral(denoiser, LOG_LINEAR), num=40, nfe=4)
    # sigma = -log(1 - t) at t = 1 (bounded at 1e-3), 3/4, 1/2, 1/4; one row for the shared first state
    expected = -torch.tensor([1e-3, 0.25, 0.5, 0.75]).log()
    assert len(denoiser.levels) == 4
    for rows, level, value in zip(denoiser.trunk_rows, denoiser.levels, expected, strict=True):
        torch.testing.assert_close(level, value.expand(rows))


def test_the_grid_of_times_is_even_and_its_ends_are_exact():
    assert time_grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    for name in ("log-linear", "cosine", "geometric"):
        alphas = [float(alpha_at(schedule_from_name(name), t)) for t in time_grid(8)]
        assert (alphas[0], alphas[-1]) == (0, 1)
        assert all(earlier < later for earlier, later in itertools.pairwise(alphas))
    with pytest.raises(UsageError, match=r"nfe lies in \[1, 65536\]"):
        time_grid(0)


def test_the_cosine_grid_begins_with_small_moves(unchecked):
    times = time_grid(2, "cosine")
    torch.testing.assert_close(times, torch.tensor([1, 0.5**0.5, 0], dtype=torch.float64))
    assert float(times[-1]) == 0
    with pytest.raises(UsageError, match="a time grid is one of uniform, cosine; got 'square'"):
        time_grid(2, "square")


def test_given_times_fall_from_one_to_zero_and_set_the_moves(enumerated, tabular, chi_square, canvas_of):
    assert given_times([1.0, 0.3, 0.0]).tolist() == [1, 0.3, 0]
    for wrong in ([1.0], [0.9, 0.0], [1.0, 0.5], [1.0, 0.5, 0.5, 0.0], [1.0, float("nan"), 0.0]):
        with pytest.raises(UsageError, match="times fall from 1 to 0"):
            given_times(wrong)
    *_, last = Ancestral(tabular(enumerated.table), LOG_LINEAR)(
        canvas_of(torch.full((NUM, 2), enumerated.MASK)), given_times([1.0, 0.3, 0.0]), SequenceNoise(0, range(NUM))
    )
    probs = enumerated.table[..., :3].double().softmax(-1)
    after_first = enumerated.after_move(enumerated.all_masked(), probs, 0.7)
    expected = enumerated.of_clean(enumerated.after_move(after_first, probs, 1.0))
    assert chi_square(last.z[:, 0] * 3 + last.z[:, 1], expected) > 1e-3


def test_sampling_may_start_at_an_intermediate_time(enumerated, tabular, canvas_of):
    # Given that a position is masked at time 1/2, it stays so until 1/4 with probability 1/2, not 1/4.
    z = torch.full((NUM, 2), enumerated.MASK)
    times = torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)
    first, _ = Ancestral(tabular(enumerated.table), LOG_LINEAR)(canvas_of(z), times, SequenceNoise(0, range(NUM)))
    assert float(first.is_changed.double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / (2 * NUM) ** 0.5)


@pytest.mark.parametrize("nfe", [2, 5])
def test_tau_leaping_follows_its_distribution(enumerated, tabular, draw, chi_square, process, nfe):
    """Masks are revealed with probability 1 - exp(-step * rate), with the rate at the start of the move."""
    state_probs, reveals = enumerated.all_masked(), []
    probs = enumerated.table[..., :3].double().softmax(-1)
    for t, s in itertools.pairwise(time_grid(nfe)):
        rate = -process.schedule.alpha_prime(t) / (1 - process.schedule.alpha(t))
        reveals.append(1.0 if s == 0 else float(1 - torch.exp(-(t - s) * rate)))
        state_probs = enumerated.after_move(state_probs, probs, reveals[-1])
    steps, drawn = draw(Ancestral(tabular(enumerated.table), process, leap="tau"), num=NUM, nfe=nfe)
    assert chi_square(drawn, enumerated.of_clean(state_probs)) > 1e-3
    assert float(steps[0].is_changed.double().mean()) == pytest.approx(reveals[0], abs=4 * 0.5 / (2 * NUM) ** 0.5)


def test_the_analytic_sampler_of_the_score_is_the_posterior():
    """Tweedie tau-leaping of SEDD (its Eq. 19) for the absorbing process: the same reveal probability as Eq. 2."""
    for t, s in ((0.9, 0.75), (0.6, 0.5), (0.2, 0.0)):
        alpha_t, alpha_s = (LOG_LINEAR.schedule.alpha(torch.tensor(time, dtype=torch.float64)) for time in (t, s))
        clean_probs = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)  # of the clean token
        score = clean_probs * alpha_t / (1 - alpha_t)  # p_t(token) / p_t(mask), the concrete score at a mask
        keep = alpha_t / alpha_s  # of the forward move s -> t
        to_token = score * (1 - keep) / keep  # (exp(-dsigma Q) s)_token times exp(dsigma Q)(token -> mask)
        torch.testing.assert_close(to_token, clean_probs * reveal_probability(alpha_s, alpha_t))


def test_whole_batch_mode_draws_the_same_samples_with_the_whole_batch_in_every_pass(enumerated, tabular, draw):
    denoiser = tabular(enumerated.table)
    _, whole = draw(Ancestral(denoiser, LOG_LINEAR, is_whole_batch=True), num=50, nfe=16)
    assert set(denoiser.trunk_rows) == {50}
    _, lazy = draw(Ancestral(tabular(enumerated.table), LOG_LINEAR), num=50, nfe=16)
    assert torch.equal(whole, lazy)


def test_equal_rows_that_attend_to_the_same_positions_are_reduced_to_one_row():
    same, mixed = torch.tensor([[1, 2], [1, 2]]), torch.tensor([[1, 2], [1, 3]])
    assert shared_rows(same, Canvas.free(same)).tolist() == [[1, 2]]
    assert shared_rows(mixed, Canvas.free(mixed)) is mixed
    padded = Canvas.padded(same, torch.tensor([2, 1]))
    assert shared_rows(same, padded) is same  # they do not attend to the same positions
