"""Samples depend neither on the global settings of torch at the call nor on pickling of the bundle."""

import copy
import pickle
from functools import partial

import pytest
import torch

import didi
from didi.data.markov import MarkovChain
from didi.diffusion.canvas import Canvas
from didi.errors import UsageError
from didi.evaluation.perplexity import ExactJudge
from didi.models.bundle import Bundle, load
from didi.models.inference import for_inference
from didi.sampling.completion import planned
from didi.sampling.generate import generate
from didi.sampling.options import SamplingOptions
from didi.torch_defaults import each_with_torch_defaults, torch_defaults

TILTED = {"sampler": "guided", "guidance": didi.Guidance(tilted_fraction=1.0)}
OPTIONS = {"ancestral": {}, "tilted": TILTED, "confidence": {"sampler": "confidence"}}


class Float64Default:
    """A context in which float64 is the default dtype."""

    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


CONTEXTS = {
    "float64": Float64Default,
    "default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def sample(bundle, name):
    return generate(bundle, num_samples=2, nfe=4, **OPTIONS[name]).tokens.tolist()


@pytest.fixture(scope="module")
def bundle():
    return load("exact")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_the_callers_context_changes_no_sample(bundle, context, name):
    expected = sample(bundle, name)
    with CONTEXTS[context]():
        assert sample(bundle, name) == expected
        loaded = load("exact")
        assert sample(loaded, name) == expected
    assert sample(loaded, name) == expected  # a bundle loaded within the context works outside it
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.slow
def test_an_evaluation_is_the_same_in_any_context(make_dit):
    markov, judge = Bundle(student=make_dit(vocab_size=33, length=4)), ExactJudge(MarkovChain())
    data = judge.chain.sample(8, 4, torch.Generator().manual_seed(0))

    def results():
        return [(row.gen_ppl, row.nelbo) for row in didi.evaluate(markov, nfe=2, num_samples=8, judge=judge, data=data)]

    expected = repr(results())
    for context in CONTEXTS.values():
        with context():
            assert repr(results()) == expected


def test_the_callers_settings_hold_between_the_moves():
    def items():
        for _ in range(2):
            yield torch.get_default_dtype()

    with Float64Default():
        for dtype in each_with_torch_defaults(items()):
            assert (dtype, torch.get_default_dtype()) == (torch.float32, torch.float64)
        with pytest.raises(ZeroDivisionError), torch_defaults():
            raise ZeroDivisionError
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bundle: bundle.to("meta"), "the student is on the meta device and has no values: load it again"),
        (lambda bundle: bundle.student.bfloat16(), "the student has torch.bfloat16: call its float"),
        (lambda bundle: bundle.student.blocks.half(), "the student has torch.float16"),
        (lambda bundle: bundle.student.double(), "the student has torch.float64"),
        (lambda bundle: bundle.student.output_layer.linear.double(), "the student has torch.float64"),
        (lambda bundle: bundle.student.train(), "the student is in training mode: call its eval"),
        (lambda bundle: bundle.discriminator.bfloat16(), "the discriminator has torch.bfloat16"),
        (lambda bundle: bundle.discriminator.train(), "the discriminator is in training mode"),
    ],
)
def test_networks_that_are_not_ready_are_refused(change, message):
    bundle = load("exact")
    didi.stream(bundle, **TILTED)  # the check is made at every call
    change(bundle)
    plan = partial(planned, bundle, Canvas.blank(1, 7), indices=[0], options=SamplingOptions(**TILTED))
    for call in (plan, lambda: didi.stream(bundle, **TILTED), lambda: didi.evaluate(bundle, sampler="guided", nfe=2)):
        with pytest.raises(UsageError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_networks_that_were_converted_for_inference_are_sampled(bundle):
    converted = for_inference(bundle, "bfloat16")
    assert generate(converted, num_samples=2, nfe=2).tokens.shape == (2, 7)
    converted.network().output_layer.linear.half()
    with pytest.raises(UsageError, match=r"has torch\.float16"):
        generate(converted, num_samples=2, nfe=2)
    converted.network().bfloat16()
    with pytest.raises(UsageError, match=r"has torch\.bfloat16"):
        generate(converted, num_samples=2, nfe=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_a_pickled_or_copied_bundle_gives_the_same_samples(bundle, name):
    for copied in (pickle.loads(pickle.dumps(bundle)), copy.deepcopy(bundle)):
        assert sample(copied, name) == sample(bundle, name)
        assert copied.process == bundle.process
        assert not copied.discriminator.training


@pytest.mark.slow
def test_a_pickled_discriminator_keeps_its_frozen_parameters(bundle):
    frozen = load("exact")
    frozen.discriminator.trunk.requires_grad_(False)
    unpickled = pickle.loads(pickle.dumps(frozen)).discriminator
    assert [parameter.requires_grad for parameter in unpickled.parameters()] == [
        parameter.requires_grad for parameter in frozen.discriminator.parameters()
    ]
    with pytest.raises(UsageError, match="pickled or copied before for_inference"):
        pickle.dumps(for_inference(bundle, "bfloat16"))
