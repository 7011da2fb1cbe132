"""Networks converted for inference: bfloat16, int8, compiled trunks and CUDA graphs."""

import contextlib
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch

import didi
from didi.errors import UsageError
from didi.models.discriminator import Discriminator
from didi.models.inference import Graphed, for_inference


@pytest.fixture(scope="module")
def bundle():
    teacher = didi.load("markov")
    return replace(teacher, discriminator=Discriminator.from_denoiser(teacher.teacher).eval())


@pytest.fixture(scope="module")
def tokens(bundle):
    return didi.generate(bundle, num_samples=4, nfe=4).tokens


@torch.no_grad()
@pytest.mark.parametrize(("numerics", "tolerance"), [("int8", 0.1), ("bfloat16", 0.05)])
def test_int8_and_bfloat16_networks_have_nearly_the_same_logits_and_the_original_is_unchanged(
    bundle, tokens, numerics, tolerance
):
    exact = bundle.teacher(tokens)
    approximate = for_inference(bundle, numerics).teacher(tokens)
    change = float((approximate - exact).norm() / exact.norm())
    assert 1e-5 < change < tolerance
    assert torch.equal(bundle.teacher(tokens), exact)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("numerics", ["int8", "bfloat16"])
def test_the_discriminator_is_converted_to_bfloat16_only_and_guides_sampling(bundle, tokens, numerics):
    fast = for_inference(bundle, numerics)
    sigma = torch.full((4,), 0.5)
    exact, approximate = bundle.discriminator(tokens, sigma), fast.discriminator(tokens, sigma)
    change = float((approximate - exact).norm() / exact.norm())
    if numerics == "int8":  # int8 kernels have no gradient, so the discriminator is not converted
        assert change == 0
    else:
        assert 0 < change < 0.2
    drawn = didi.generate(fast, num_samples=3, nfe=16, sampler="guided")
    assert drawn.tokens.shape == (3, 32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:torch")  # of torch's own compiler
# With the shape checks of the tests, ``inference_mode`` does not recognise samplers as generators; gradients are on.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_trunk_draws_nearly_the_same_samples(bundle, unchecked):
    plain = didi.generate(bundle, num_samples=4, nfe=4, batch_size=4)
    compiled = didi.generate(
        for_inference(bundle, is_compiled=True), num_samples=4, nfe=4, batch_size=4, is_whole_batch=True
    )
    assert (plain.tokens == compiled.tokens).double().mean() > 0.98  # rounding may change a few draws


def test_the_defaults_change_nothing(bundle, unchecked):
    assert for_inference(bundle) is bundle
    with pytest.raises(UsageError, match="network numerics are one of float32, bfloat16, int8; got 'int4'"):
        for_inference(bundle, "int4")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("modes", [(torch.inference_mode, torch.no_grad), (torch.no_grad, torch.inference_mode)])
def test_a_graph_is_replayed_with_and_without_inference_mode(modes, monkeypatch):
    class Replayed:
        """In place of a CUDA graph; ``replay`` computes the captured output again."""

        def replay(self):
            _, inputs, output = next(iter(graphed._graphs.values()))
            with torch.inference_mode():  # a graph writes without autograd
                output.copy_(inputs[0] * 2)

    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Replayed)
    graphed = Graphed(lambda x: x * 2)
    for number, mode in enumerate(modes):
        with mode():
            x = torch.full((3,), float(number))
            assert graphed(x).tolist() == [2.0 * number] * 3
    assert len(graphed._graphs) == 1
    x = torch.ones(3, requires_grad=True)
    graphed(x).sum().backward()  # without the graph
    assert x.grad.tolist() == [2, 2, 2]
