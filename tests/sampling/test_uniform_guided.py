"""Reward-guided sampling of uniform-state diffusion, enumerated on all states of 3 symbols and 3 positions.

The discriminator is a table of log-ratios of states and times. It is multilinear in its embeddings: exact for tokens,
and differentiable for distributions of tokens.
"""

import itertools

import pytest
import torch
from torch import nn

from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.uniform import Uniform
from didi.evaluation.exact.product import all_states, joint_probs, position_probs
from didi.evaluation.exact.rows import ExactRows
from didi.evaluation.exact.uniform_guided import uniform_guided_distribution
from didi.models.bundle import Bundle
from didi.models.discriminator import Discriminator, DiscriminatorConfig
from didi.sampling import uniform_guided
from didi.sampling.base import time_grid
from didi.sampling.generate import generate
from didi.sampling.guided import Guidance
from didi.sampling.options import SamplingOptions
from didi.sampling.token_distribution import TokenDistribution
from didi.sampling.uniform_ancestral import UniformAncestral
from didi.sampling.uniform_guided import UniformGuided

NUM, LENGTH = 3, 3
PROCESS, STATES = Uniform(NUM), all_states(NUM, LENGTH)
RERANKED = Guidance(tilted_fraction=0.0, num_candidates=3)
TILTED = Guidance(tilted_fraction=1.0, initial_scale=3.0, guidance_scale=6.0, gradient_clamp=0.15)
MIXED = Guidance(tilted_fraction=0.5, initial_scale=4.0, num_candidates=2, rank_temperature=0.5)


def state_index(z):
    return (z * NUM ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)


def data_distribution():
    return (1.5 * torch.randn(NUM**LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))).softmax(0)


def corrupted(q, alpha):
    """Distribution of z_t for clean sequences of distribution ``q``."""
    kernel = alpha * torch.eye(NUM, dtype=torch.float64) + (1 - alpha) / NUM
    for _ in range(LENGTH):  # each position comes last once
        q = (q.view(NUM, -1).T @ kernel).flatten()
    return q


class Posterior(nn.Module):
    """The exact denoiser: predicts the clean token at a position given the tokens of the other positions."""

    is_time_conditioned, length, vocab_size = True, LENGTH, NUM

    def __init__(self, q):
        super().__init__()
        self.q, self.rows_read = q, []

    def features(self, inputs, sigma=None, attention_mask=None):
        alpha = (-sigma.double()).exp()[:, None, None]
        token_likelihood = alpha * (inputs[:, None] == STATES).double() + (1 - alpha) / NUM  # likelihood of each token
        marginals = []
        for position in range(LENGTH):
            others = [place for place in range(LENGTH) if place != position]
            weight = self.q * token_likelihood[:, :, others].prod(-1)
            marginals.append(weight @ torch.nn.functional.one_hot(STATES[:, position], NUM).double())
        return torch.stack(marginals, 1).log().float()

    def head(self, features):
        self.rows_read.append(len(features))
        return features


class Table(Discriminator):
    """A discriminator with a table of log-ratios of the states at several noise levels; records its inputs."""

    def __init__(self, by_level):
        sizes = {"hidden_size": 4, "num_blocks": 1, "num_heads": 1, "cond_dim": 4}
        super().__init__(DiscriminatorConfig(vocab_size=NUM, mask_id=None, length=LENGTH, output="sequence", **sizes))
        self.by_level, self.inputs = by_level, []

    def embed(self, inputs):
        return inputs if inputs.is_floating_point() else torch.nn.functional.one_hot(inputs, NUM).float()

    def from_embeddings(self, embedded, sigma=None, attention_mask=None):
        self.inputs.append((embedded.detach(), sigma))
        nearest = min(self.by_level, key=lambda level: abs(level - float(sigma[0])))
        assert abs(nearest - float(sigma[0])) < 1e-4
        weights = embedded.new_ones(len(embedded), 1)
        for position in range(LENGTH):
            weights = (weights[:, :, None] * embedded[:, position, None]).flatten(1)
        return weights @ self.by_level[nearest].float()


def levels(times):
    return PROCESS.noise_level(Posterior(None), times[1:]).tolist()


def exact_discriminator(network, q, times, sign=1.0):
    """The log-ratio of the states of the sampler over those of corrupted data, after each move."""
    mass, by_level = torch.full((len(STATES),), 1 / len(STATES), dtype=torch.float64), {}
    for (t, s), level in zip(itertools.pairwise(times), levels(times), strict=True):
        mass = mass @ joint_probs(position_probs(UniformAncestral(network, PROCESS), STATES, t, s))
        by_level[level] = sign * (mass.log() - corrupted(q, float(PROCESS.schedule.alpha(s))).log())
    return Table(by_level)


def random_table(times):
    generator = torch.Generator().manual_seed(5)
    return Table({level: torch.randn(len(STATES), generator=generator, dtype=torch.float64) for level in levels(times)})


@pytest.fixture(scope="module")
def q():
    return data_distribution()


@pytest.fixture(scope="module")
def network(q):
    return Posterior(q)


def sampler_of(network, times, guidance, **options):
    return UniformGuided(network, PROCESS, random_table(times), guidance, **options)


def moves_of(sampler, num, nfe, seed=0, canvas=None):
    return list(sampler(canvas or Canvas.blank(num, LENGTH), time_grid(nfe), SequenceNoise(seed, range(num))))


def kl(p, q):
    return float((p * (p.log() - q.log())).sum())


@pytest.mark.parametrize("nfe", [1, 4])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_without_tilt_and_with_one_candidate_the_samples_are_ancestral(network, nfe, fraction):
    guidance = Guidance(tilted_fraction=fraction, guidance_scale=0.0, num_candidates=1)
    guided = sampler_of(network, time_grid(nfe), guidance)
    plain = UniformAncestral(network, PROCESS)
    for move, expected in zip(moves_of(guided, 50, nfe), moves_of(plain, 50, nfe), strict=True):
        assert torch.equal(move.z, expected.z)
        assert torch.equal(move.network_passes, expected.network_passes)
        assert not move.discriminator_passes.any()
    assert not guided.discriminator.inputs


@pytest.mark.parametrize("guidance", [RERANKED, TILTED, MIXED], ids=["re-ranked", "tilted", "mixed"])
def test_samples_have_the_enumerated_distribution(network, chi_square, guidance):
    times, num = time_grid(3), 1500
    sampler = sampler_of(network, times, guidance)
    p = uniform_guided_distribution(sampler, NUM, LENGTH, times)
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    assert chi_square(state_index(moves_of(sampler, num, 3)[-1].z), p) > 1e-3
    plain = uniform_guided_distribution(
        sampler_of(network, times, Guidance(0.0, 0.0, num_candidates=1)), NUM, LENGTH, times
    )
    assert float((p - plain).abs().sum()) > 0.05  # guidance has an effect


def test_one_candidate_has_the_distribution_without_guidance(network):
    times = time_grid(2)
    p = uniform_guided_distribution(sampler_of(network, times, Guidance(0.0, num_candidates=1)), NUM, LENGTH, times)
    unguided = sampler_of(network, times, Guidance(0.0, num_candidates=1)).unguided
    mass = torch.full((NUM**LENGTH,), NUM**-LENGTH, dtype=torch.float64)
    for move in itertools.pairwise(times):
        mass = mass @ joint_probs(position_probs(unguided, STATES, *move))
    torch.testing.assert_close(p, mass)


def test_temperature_applies_to_guided_draws(network, chi_square):
    times = time_grid(2)
    sampler = sampler_of(network, times, MIXED, token_distribution=TokenDistribution(temperature=0.6))
    p = uniform_guided_distribution(sampler, NUM, LENGTH, times)
    assert chi_square(state_index(moves_of(sampler, 1500, 2)[-1].z), p) > 1e-3
    assert (
        float((p - uniform_guided_distribution(sampler_of(network, times, MIXED), NUM, LENGTH, times)).abs().sum())
        > 0.05
    )


@pytest.mark.parametrize("temperature", [0.7, 0.01])  # at 0.01 the log-weights differ by several hundreds
def test_a_re_ranked_move_is_the_sum_over_all_pairs_of_candidates(network, temperature):
    times = time_grid(1)
    sampler = sampler_of(network, times, Guidance(tilted_fraction=0.0, num_candidates=2, rank_temperature=temperature))
    transitions = joint_probs(position_probs(sampler.unguided, STATES, *times))
    reward = -sampler.discriminator.by_level[levels(times)[0]] / temperature
    first_is_chosen = (reward[:, None] - reward[None]).sigmoid()
    expected = 2 * (transitions * (transitions @ first_is_chosen.T)).mean(0)  # from uniform noise
    torch.testing.assert_close(uniform_guided_distribution(sampler, NUM, LENGTH, times), expected, rtol=1e-6, atol=1e-9)


def test_the_best_candidate_has_the_highest_reward(network):
    times = time_grid(1)
    plain, best = (
        sampler_of(network, times, Guidance(tilted_fraction=0.0, num_candidates=num, select="best")) for num in (1, 8)
    )
    scores = plain.discriminator.by_level[levels(times)[0]]
    plain_score, best_score = (scores[state_index(moves_of(sampler, 300, 1)[-1].z)].mean() for sampler in (plain, best))
    assert best_score < plain_score - 0.8


def test_tilted_logits_are_the_clamped_gradient_of_the_reward_by_finite_differences(network):
    times, clamp, scale = time_grid(4)[1:3], 0.02, 5.0
    sampler = sampler_of(network, time_grid(4), Guidance(gradient_clamp=clamp))
    z = STATES[[5, 17]]
    everywhere = torch.ones_like(z, dtype=torch.bool)
    actual = sampler.tilted_logits(z, Canvas.free(z), everywhere, tuple(times), scale).view(2, LENGTH, NUM)
    level = PROCESS.noise_level(network, times[:1].expand(2))
    logits = network.features(z, level).double()
    table = sampler.discriminator.by_level[levels(times)[0]].float()

    def rewards(log_probs):
        after = PROCESS.posterior(z, log_probs.log_softmax(-1), *(time.expand(2) for time in times))
        return -(joint_probs(after) @ table.double())

    numeric, step = torch.zeros_like(logits), 1e-4
    for position, symbol in itertools.product(range(LENGTH), range(NUM)):
        moved = torch.zeros_like(logits)
        moved[:, position, symbol] = step
        numeric[:, position, symbol] = (rewards(logits + moved) - rewards(logits - moved)) / (2 * step)
    assert (numeric.abs() > clamp).any()
    assert (numeric.abs() < clamp).any()
    torch.testing.assert_close(
        actual.double(), logits + scale * numeric.clamp(-clamp, clamp), rtol=1e-4, atol=1e-4, check_dtype=False
    )


def test_tilted_logits_depend_neither_on_which_positions_are_read_nor_on_the_size_of_parts(network, monkeypatch):
    times = tuple(time_grid(4)[1:3])
    sampler, z = sampler_of(network, time_grid(4), TILTED), STATES[:5]
    is_read = torch.rand(z.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    whole = sampler.tilted_logits(z, Canvas.free(z), torch.ones_like(is_read), times, 3.0).view(5, LENGTH, NUM)
    monkeypatch.setattr(uniform_guided, "PART", 2)
    torch.testing.assert_close(sampler.tilted_logits(z, Canvas.free(z), is_read, times, 3.0), whole[is_read])


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(tilted_fraction=0.0, num_candidates=4),
        Guidance(tilted_fraction=1.0, initial_scale=2.0, guidance_scale=2.0),
    ],
    ids=["re-ranked", "tilted"],
)
@pytest.mark.parametrize("nfe", [1, 2])
def test_with_the_exact_log_ratio_guidance_lowers_the_divergence_from_the_data(network, q, guidance, nfe):
    times = time_grid(nfe)
    plain = Guidance(tilted_fraction=0.0, num_candidates=1)
    plain_kl, guided_kl, opposite_kl = (
        kl(uniform_guided_distribution(UniformGuided(network, PROCESS, discriminator, settings), NUM, LENGTH, times), q)
        for discriminator, settings in (
            (exact_discriminator(network, q, times), plain),
            (exact_discriminator(network, q, times), guidance),
            (exact_discriminator(network, q, times, sign=-1), guidance),
        )
    )
    assert guided_kl < 0.93 * plain_kl  # 0.532 to 0.478 by a tilt in one move
    assert opposite_kl > 1.1 * plain_kl


def test_the_discriminator_reads_the_state_and_time_after_a_move(network):
    times = time_grid(2)
    sampler = sampler_of(network, times, RERANKED)
    steps = moves_of(sampler, 20, 2)
    for step, (one_hot, sigma), level in zip(steps, sampler.discriminator.inputs, levels(times), strict=True):
        torch.testing.assert_close(sigma, torch.full_like(sigma, level))
        candidates = one_hot.argmax(-1).view(-1, 3, LENGTH)
        assert (candidates == step.z[step.discriminator_passes > 0][:, None]).all(-1).any(1).all()
    tilted = sampler_of(network, times, Guidance(tilted_fraction=1.0, initial_scale=1.0))
    moves_of(tilted, 20, 2)
    for (simplex, sigma), level in zip(tilted.discriminator.inputs, levels(times), strict=True):
        torch.testing.assert_close(sigma, torch.full_like(sigma, level))
        torch.testing.assert_close(simplex.sum(-1), torch.ones(simplex.shape[:2]))


def test_passes_are_counted_and_the_head_runs_where_a_candidate_may_change(q):
    network, num = Posterior(q), 40
    times = time_grid(8)
    sampler = sampler_of(network, times, Guidance(tilted_fraction=0.25, initial_scale=0.0, num_candidates=3))
    steps = moves_of(sampler, num, 8)
    scored = [len(inputs) for inputs, _ in sampler.discriminator.inputs]
    assert not steps[0].discriminator_passes.any()  # h is 0
    assert torch.equal(steps[1].discriminator_passes, 2 * steps[1].network_passes)
    assert [int(step.discriminator_passes.sum()) // (2 if move == 1 else 1) for move, step in enumerate(steps)][1:] == (
        scored
    )
    for step in steps[2:]:
        assert set(step.discriminator_passes.unique().tolist()) <= {0, 3}
        assert (step.discriminator_passes >= step.network_passes).all()
    moves_of(sampler_of(tilted := Posterior(q), times, Guidance(tilted_fraction=1.0, initial_scale=1.0)), num, 8)
    # A tilted move reads every position once, and the positions that may change a second time.
    assert sum(tilted.rows_read) > 8 * num * LENGTH
    assert sum(network.rows_read) < 0.85 * 9 * num * LENGTH


def test_candidates_without_a_network_pass_are_ranked(network):
    times = time_grid(20)  # in the first move most tokens are drawn uniformly for any prediction
    guidance = Guidance(tilted_fraction=0.0, num_candidates=2, select="best")
    sampler = sampler_of(network, times, guidance)
    step = next(iter(sampler(Canvas.blank(200, LENGTH), times, SequenceNoise(0, range(200)))))
    without_pass = step.network_passes == 0
    assert 50 < without_pass.sum() < 190
    assert (step.discriminator_passes == 2).all()
    scores = sampler.discriminator.by_level[levels(times)[0]]
    assert scores[state_index(step.z[without_pass])].mean() < scores.mean() - 0.3


def test_given_tokens_stay_and_are_inputs_of_the_discriminator(network):
    times = time_grid(3)
    is_free = torch.tensor([[True, False, True]]).expand(30, 3)
    given = torch.full((30, 3), 2)
    sampler = sampler_of(network, times, MIXED)
    for step in moves_of(sampler, 30, 3, canvas=Canvas.given(given, is_free)):
        assert (step.z[:, 1] == 2).all()
    assert len(sampler.discriminator.inputs) == 3
    for embedded, _ in sampler.discriminator.inputs:
        assert (embedded[:, 1] == torch.tensor([0.0, 0, 1])).all()


@pytest.mark.slow
@pytest.mark.parametrize("output", ["token", "sequence"])
def test_a_bundle_is_sampled_with_guidance_and_has_its_exact_distribution(
    make_dit, make_discriminator, chi_square, output
):
    student = make_dit(vocab_size=3, length=3, mask_id=None, is_time_conditioned=True)
    bundle = Bundle(student=student, discriminator=make_discriminator(student, output=output), process=Uniform(3))
    guidance = Guidance(tilted_fraction=0.34, initial_scale=20.0, num_candidates=3, rank_temperature=0.1)
    options = SamplingOptions("guided", guidance=guidance, batch_size=3000)
    p = ExactRows(bundle).distribution(3, options, 3)
    out = generate(bundle, num_samples=3000, nfe=3, seed=1, options=options)
    assert chi_square(state_index(out.tokens), p) > 1e-3
    assert (out.discriminator_passes > 0).any()
    plain = ExactRows(bundle).distribution(3, SamplingOptions(), 3)
    assert float((p - plain).abs().sum()) > 0.01
    best = SamplingOptions("guided", guidance=Guidance(select="best"))
    assert ExactRows(bundle).distribution(3, best, 3) is None
