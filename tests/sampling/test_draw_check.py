"""Tokens are drawn from finite logits only, and a finished sample holds no mask."""

import copy
from dataclasses import replace

import pytest
import torch

from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.errors import DidiError, UsageError
from didi.evaluation.exact.rows import ExactRows
from didi.models.bundle import Bundle
from didi.models.guidance import Guidance
from didi.sampling.completion import completed
from didi.sampling.confidence import ConfidenceOrder
from didi.sampling.draw_check import DrawCheck, no_draw_checks
from didi.sampling.generate import generate
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import samplers_of
from didi.sampling.stream import stream

LENGTH = 6


@pytest.fixture(scope="module")
def bundle(make_dit, make_discriminator):
    network = make_dit(vocab_size=7, length=LENGTH)
    return Bundle(student=network, discriminator=make_discriminator(network))


def damaged(bundle, role, value):
    """A copy of the bundle in which the first parameter of the head of a network is filled with ``value``."""
    network = copy.deepcopy(getattr(bundle, role))
    first = next(parameter for name, parameter in network.named_parameters() if name.startswith("output_layer."))
    torch.nn.init.constant_(first, value)
    return replace(bundle, **{role: network})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampler", samplers_of("absorbing"))
def test_no_sampler_draws_from_logits_that_are_not_finite(bundle, sampler, value):
    with pytest.raises(DidiError, match="not finite") as caught:
        generate(damaged(bundle, "student", value), num_samples=2, nfe=1, sampler=sampler)
    assert not isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"precision": "float32"}, {"top_p": 0.5}, {"temperature": 0.5}])
def test_no_precision_or_token_distribution_draws_from_logits_that_are_not_finite(bundle, options):
    with pytest.raises(DidiError, match="not finite"):
        generate(damaged(bundle, "student", float("nan")), num_samples=2, nfe=2, **options)


@pytest.mark.parametrize("guidance", [Guidance(tilted_fraction=1.0), Guidance(tilted_fraction=0.0, select="best")])
def test_guidance_by_a_discriminator_with_nan_is_refused(bundle, guidance):
    with pytest.raises(DidiError, match="not finite"):
        generate(damaged(bundle, "discriminator", float("nan")), nfe=4, sampler="guided", guidance=guidance)


def test_the_largest_gumbel_scale_leaves_no_mask(bundle):
    order = ConfidenceOrder(gumbel=1e30)
    tokens = generate(bundle, num_samples=64, nfe=4, sampler="confidence", order=order).tokens
    assert (tokens < 6).all()


def test_a_gumbel_variate_of_a_uniform_that_is_zero_leaves_no_mask(bundle, monkeypatch):
    uniforms = SequenceNoise.uniforms
    monkeypatch.setattr(SequenceNoise, "uniforms", lambda self, *shape, **rest: uniforms(self, *shape, **rest) * 0)
    order = ConfidenceOrder(gumbel=1.0)
    tokens = generate(bundle, num_samples=2, nfe=2, sampler="confidence", order=order).tokens
    assert (tokens < 6).all()


def test_a_sampler_that_leaves_a_mask_is_reported(bundle, monkeypatch):
    monkeypatch.setattr("didi.sampling.ancestral.reveal_moves", lambda uniforms, is_masked, alphas: torch.where(
        is_masked, 0, -1).index_fill(1, torch.tensor([2]), -1))  # fmt: skip
    with pytest.raises(DidiError, match=r"a finished sample holds no \[MASK\]"):
        list(stream(bundle, nfe=2))


def test_the_check_accepts_symbols_of_probability_0_and_refuses_rows_without_other_symbols():
    draw_check = DrawCheck()
    draw_check.check(torch.tensor([[0.0, -torch.inf], [-torch.inf, -1e30]]))
    draw_check.check(torch.zeros(0, 3))
    draw_check.finish()
    with pytest.raises(DidiError, match="not finite"):
        draw_check.check(torch.full((1, 3), -torch.inf))


@pytest.fixture
def deferred(monkeypatch):
    """Collect the results of draw checks as on a CUDA device, where they are read at the end of a batch."""

    def check(self, scores):
        is_bad = ~scores.detach().amax(-1).isfinite().all()
        self._is_bad = is_bad if self._is_bad is None else self._is_bad | is_bad

    monkeypatch.setattr(DrawCheck, "check", check)


@pytest.mark.parametrize("sampler", samplers_of("absorbing"))
def test_a_deferred_check_refuses_a_batch_at_its_end(bundle, deferred, sampler):
    with pytest.raises(DidiError, match="not finite"):
        generate(damaged(bundle, "student", float("nan")), num_samples=2, nfe=1, sampler=sampler)


def test_a_completed_batch_is_checked_at_its_end(bundle, deferred):
    with pytest.raises(DidiError, match="not finite"):
        completed(damaged(bundle, "student", float("nan")), Canvas.blank(2, LENGTH), indices=[0, 1], nfe=2)


def test_an_exact_distribution_is_checked_at_its_end(make_dit, deferred):
    small = Bundle(student=make_dit(vocab_size=3, length=3))
    with pytest.raises(DidiError, match="not finite"):
        ExactRows(damaged(small, "student", float("nan"))).distribution(2, SamplingOptions(), 2)


def test_no_draw_checks_turns_the_check_off(bundle):
    with no_draw_checks():
        generate(damaged(bundle, "student", float("nan")), num_samples=2, nfe=2)
    with pytest.raises(DidiError, match="not finite"):
        generate(damaged(bundle, "student", float("nan")), num_samples=2, nfe=2)


def test_finish_reads_and_resets_the_results_of_a_cuda_device():
    draw_check = DrawCheck()
    draw_check._is_bad = torch.tensor(True)  # as collected on a CUDA device
    with pytest.raises(DidiError, match="not finite"):
        draw_check.finish()
    draw_check.finish()  # reset
