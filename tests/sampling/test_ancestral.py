import itertools

import pytest
import torch

from didi.diffusion.categorical import sample_categorical
from didi.diffusion.masked import token_log_probs
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import schedule_from_name
from didi.errors import UsageError
from didi.sampling.ancestral import Ancestral
from didi.sampling.base import alpha_at, shared_rows, uniform_times

NUM = 3000
LOG_LINEAR = schedule_from_name("log-linear")


@pytest.fixture(params=["log-linear", "cosine", "geometric"])
def schedule(request):
    return schedule_from_name(request.param)


@pytest.mark.parametrize(("nfe", "precision"), [(1, "float64"), (2, "float64"), (4, "float64"), (4, "float32")])
def test_samples_follow_the_exact_law_of_the_moves(world, tabular, draw, chi_square, schedule, nfe, precision):
    expected = world.law([world.table] * nfe, schedule)
    _, drawn = draw(Ancestral(tabular(world.table), precision), schedule, num=NUM, nfe=nfe)
    assert chi_square(drawn, expected) > 1e-3
    if nfe == 4:  # the test would see a wrong number of moves
        assert chi_square(drawn, world.law([world.table], schedule)) < 1e-3


@torch.no_grad()
def test_samples_of_a_transformer_follow_its_law(world, make_dit, draw, chi_square):
    network = make_dit(seed=4)
    expected = world.law([network(world.STATES)] * 2, LOG_LINEAR)
    _, drawn = draw(Ancestral(network), LOG_LINEAR, num=6000, nfe=2)
    assert chi_square(drawn, expected) > 1e-3


def test_many_moves_of_the_exact_posterior_give_the_data_law(world, tabular, draw, chi_square):
    # Two tokens fall into one of 256 moves, and are then drawn as if independent, with probability 1/256.
    sampler = Ancestral(tabular(world.exact_table()))
    _, drawn = draw(sampler, LOG_LINEAR, num=1500, nfe=256)
    assert chi_square(drawn, world.data_law) > 1e-3
    _, drawn = draw(sampler, LOG_LINEAR, num=1500, nfe=1)
    assert chi_square(drawn, world.data_law) < 1e-6


def test_temperature_divides_the_logits(world, tabular, draw, chi_square):
    for precision in ("float64", "float32"):
        sampler = Ancestral(tabular(world.table), precision, temperature=0.5)
        _, drawn = draw(sampler, LOG_LINEAR, num=NUM, nfe=2)
        assert chi_square(drawn, world.law([2 * world.table] * 2, LOG_LINEAR)) > 1e-3
        assert chi_square(drawn, world.law([world.table] * 2, LOG_LINEAR)) < 1e-3


@pytest.mark.parametrize("nfe", [1, 4, 16])
def test_the_head_reads_each_position_once_and_the_first_trunk_pass_is_one_row(world, tabular, draw, nfe):
    denoiser = tabular(world.table)
    steps, _ = draw(Ancestral(denoiser), LOG_LINEAR, num=50, nfe=nfe)
    assert sum(denoiser.head_rows) == 50 * 2
    before = [torch.full((50, 2), world.MASK)] + [step.z for step in steps[:-1]]
    read = [z[step.student_passes == 1] for z, step in zip(before, steps, strict=True)]
    # A row for each sequence that reveals something, or one for all where they are in one state, as at the start.
    assert denoiser.trunk_rows == [1 if len(z.unique(dim=0)) == 1 else len(z) for z in read if len(z)]
    assert denoiser.trunk_rows[0] == 1
    assert len(read[0]) > 1


def test_a_move_that_reveals_nothing_costs_no_pass(world, tabular, draw):
    denoiser = tabular(world.table)
    steps, _ = draw(Ancestral(denoiser), LOG_LINEAR, num=1, nfe=64)
    for step in steps:
        assert step.student_passes.tolist() == [int(step.changed.any())]
        assert step.discriminator_passes.tolist() == [0]
    assert sum(int(step.student_passes) for step in steps) == len(denoiser.trunk_rows) <= 2


def test_the_published_algorithm_runs_the_network_at_every_move_with_masks(world, tabular, draw):
    denoiser = tabular(world.table)
    steps, _ = draw(Ancestral(denoiser, "float32"), LOG_LINEAR, num=5, nfe=8)
    masked = [torch.full((5, 2), world.MASK)] + [step.z for step in steps[:-1]]
    for before, step in zip(masked, steps, strict=True):
        assert torch.equal(step.student_passes, (before == world.MASK).any(1).long())


@torch.no_grad()
def test_the_lazy_head_draws_what_the_full_head_would(make_dit):
    network, num, length, nfe = make_dit(vocab_size=9, length=12, seed=1), 6, 12, 5
    start = torch.full((num, length), network.mask_id)
    times = uniform_times(nfe)
    lazy = [step.z for step in Ancestral(network)(start, times, LOG_LINEAR, SequenceNoise(3, range(num)))]
    noise, z = SequenceNoise(3, range(num)), start
    reveal_at = noise.uniforms(length)
    for s, found in zip(times[1:], lazy, strict=True):
        is_revealed = (z == network.mask_id) & (reveal_at >= s)
        active = is_revealed.any(1).nonzero().squeeze(1).tolist()
        uniforms = torch.zeros(num, length, dtype=torch.float64)
        uniforms[active] = noise.uniforms(length, rows=active)
        everywhere = token_log_probs(network(z), network.mask_id).flatten(0, 1)
        drawn = sample_categorical(everywhere, uniforms.flatten()).view(num, length)
        z = torch.where(is_revealed, drawn, z)
        assert torch.equal(found, z)


def test_visible_positions_are_kept_and_steps_tell_what_changed(world, tabular, draw):
    start = torch.tensor([[1, world.MASK], [world.MASK, 2], [0, 0]]).repeat(20, 1)
    for precision in ("float64", "float32"):
        steps, _ = draw(Ancestral(tabular(world.table), precision), LOG_LINEAR, num=60, nfe=4, z=start)
        z = start
        for step in steps:
            assert torch.equal(step.changed, step.z != z)
            assert (z[step.changed] == world.MASK).all()
            z = step.z
        assert [step.t for step in steps] == [0.75, 0.5, 0.25, 0.0]
        assert not any(step.student_passes[2::3].any() for step in steps)


def test_given_tokens_condition_the_others(world, tabular, draw, chi_square):
    _, drawn = draw(
        Ancestral(tabular(world.exact_table())),
        LOG_LINEAR,
        num=NUM,
        nfe=3,
        z=torch.tensor([[1, world.MASK]]).repeat(NUM, 1),
    )
    posterior = torch.where(world.CLEAN[:, 0] == 1, world.data_law, 0.0)
    assert chi_square(drawn, posterior) > 1e-3


def test_a_network_conditioned_on_time_is_told_the_noise_of_each_move(world, tabular, draw):
    class Timed(tabular):
        is_time_conditioned = True
        levels = ()

        def features(self, inputs, sigma=None):
            self.levels += (sigma,)
            return super().features(inputs, sigma)

    denoiser = Timed(world.table)
    draw(Ancestral(denoiser), LOG_LINEAR, num=40, nfe=4)
    # sigma = -log(1 - t) at t = 1 (bounded at 1e-3), 3/4, 1/2, 1/4; one row for the shared first state
    expected = -torch.tensor([1e-3, 0.25, 0.5, 0.75]).log()
    assert len(denoiser.levels) == 4
    for rows, level, value in zip(denoiser.trunk_rows, denoiser.levels, expected, strict=True):
        torch.testing.assert_close(level, value.expand(rows))


def test_the_grid_of_times_is_even_and_its_ends_are_exact():
    assert uniform_times(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    for name in ("log-linear", "cosine", "geometric"):
        alphas = [float(alpha_at(schedule_from_name(name), t)) for t in uniform_times(8)]
        assert (alphas[0], alphas[-1]) == (0, 1)
        assert all(earlier < later for earlier, later in itertools.pairwise(alphas))
    with pytest.raises(UsageError, match="nfe is 1 or more"):
        uniform_times(0)


def test_equal_rows_are_one_row():
    same, mixed = torch.tensor([[1, 2], [1, 2]]), torch.tensor([[1, 2], [1, 3]])
    assert shared_rows(same).tolist() == [[1, 2]]
    assert shared_rows(mixed) is mixed
