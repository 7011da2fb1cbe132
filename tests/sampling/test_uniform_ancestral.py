"""Ancestral sampling of uniform-state diffusion for independent positions, where it is exact in any number of moves."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.models.bundle import Bundle
from didi.sampling.base import time_grid
from didi.sampling.generate import generate
from didi.sampling.token_distribution import TokenDistribution
from didi.sampling.uniform_ancestral import UniformAncestral

PROBS = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


class Constant(nn.Module):
    """Predicts the same distribution everywhere, which is exact for independent positions."""

    is_time_conditioned = False

    def features(self, inputs, sigma=None, attention_mask=None):
        return torch.zeros(*inputs.shape, 1)

    def head(self, features):
        return PROBS.log().float().expand(*features.shape[:-1], 3)


@pytest.mark.parametrize("nfe", [1, 3, 7])
def test_samples_of_independent_positions_are_exact_in_any_number_of_moves(chi_square, nfe, unchecked):
    sampler = UniformAncestral(Constant(), Uniform(3))
    *_, last = sampler(Canvas.blank(4000, 2), time_grid(nfe), SequenceNoise(nfe, range(4000)))
    for position in range(2):
        assert chi_square(last.z[:, position], PROBS) > 1e-3
    assert (last.network_passes == 1).all()


def test_the_head_reads_about_2_ln_n_times_each_position_in_n_moves(unchecked):
    sampler = UniformAncestral(Constant(), Uniform(3))
    uniforms = (torch.arange(4000, dtype=torch.float64)[None] + 0.5) / 4000
    for nfe in (16, 64):
        moves = [sampler.move(t, s).before_network(uniforms, uniforms) for t, s in pairwise(time_grid(nfe))]
        shares = [float(early.is_open.double().mean()) for early in moves]
        expected = [1 / nfe, *(nfe / (m * (nfe - 1 - m) + nfe) for m in range(1, nfe))]
        assert shares == pytest.approx(expected, abs=5e-4)
        assert sum(shares) == pytest.approx(2 * math.log(nfe), rel=0.03)


def test_top_p_excludes_unlikely_tokens_and_given_tokens_stay(unchecked):
    sampler = UniformAncestral(Constant(), Uniform(3), TokenDistribution(top_p=0.5))
    is_free = torch.tensor([[True, False, True]]).expand(64, 3)
    canvas = Canvas.given(torch.full((64, 3), 2), is_free)
    steps = list(sampler(canvas, time_grid(4), SequenceNoise(0, range(64))))
    assert all((step.z[:, 1] == 2).all() for step in steps)
    assert (steps[-1].z[:, [0, 2]] == 0).all()


def test_a_bundle_of_uniform_state_diffusion_is_sampled_and_refuses_samplers_of_masked_diffusion(make_dit):
    bundle = Bundle(teacher=make_dit(vocab_size=5, length=6, mask_id=None, is_time_conditioned=True))
    whole = generate(bundle, num_samples=5, nfe=4, seed=2)
    assert torch.equal(generate(bundle, num_samples=5, nfe=4, seed=2, batch_size=2).tokens, whole.tokens)
    with pytest.raises(UsageError, match="confidence does not sample uniform diffusion; use one of ancestral"):
        generate(bundle, sampler="confidence")
    with pytest.raises(UsageError, match=r"guided sampling needs a discriminator; .* has none: use ancestral"):
        generate(bundle, sampler="guided")
