"""Arguments of the API: values of related types are accepted, others are refused with a one-line message."""

import numpy as np
import pytest
import torch

import didi
from didi.data.markov import MarkovChain
from didi.errors import UsageError
from didi.evaluation.perplexity import ExactJudge
from didi.models.bundle import Bundle
from didi.sampling.base import MAX_NFE, time_grid
from didi.sampling.confidence import ConfidenceOrder
from didi.sampling.entropy_bounded import EntropyBounded
from didi.sampling.options import SamplingOptions
from didi.sampling.remasking import Remasking

pytestmark = pytest.mark.usefixtures("unchecked")
JUDGE = ExactJudge(MarkovChain())
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def bundle():
    return didi.load("exact")


@pytest.fixture(scope="module")
def markov(make_dit, make_discriminator):
    """A random network over the 33 symbols of the Markov chain, whose exact judge scores its samples."""
    network = make_dit(vocab_size=33, length=7)
    return Bundle(student=network, teacher=network, discriminator=make_discriminator(network))


def rows(bundle, **arguments):
    """Role, sampler and number of moves of each row of an evaluation."""
    defaults = {"num_samples": 4, "nfe": 2, "judge": JUDGE}
    return [(row.role, row.sampler, row.nfe) for row in didi.evaluate(bundle, **defaults | arguments)]


@pytest.mark.parametrize(
    ("given", "equivalent"),
    [
        ({"seed": np.int64(3)}, {"seed": 3}),
        ({"seed": torch.tensor(3)}, {"seed": 3}),
        ({"nfe": np.int32(4)}, {"nfe": 4}),
        ({"num_samples": np.uint8(2)}, {"num_samples": 2}),
        ({"length": np.int64(5)}, {"length": 5}),
        ({"batch_size": np.int64(1)}, {"batch_size": 1}),
        ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
        ({"temperature": 1, "top_p": 1}, {}),
        ({"times": [1, 0.5, 0]}, {"times": (1.0, 0.5, 0.0)}),
        ({"times": np.array([1, 0.5, 0])}, {"times": (1.0, 0.5, 0.0)}),
        ({"times": (t for t in (1, 0.5, 0))}, {"times": (1.0, 0.5, 0.0)}),
    ],
)
def test_an_equal_value_of_another_type_gives_the_same_samples(bundle, given, equivalent):
    defaults = {"num_samples": 2, "seed": 3}
    actual, expected = (didi.generate(bundle, **defaults | arguments) for arguments in (given, equivalent))
    assert torch.equal(actual.tokens, expected.tokens)
    assert type(actual.seed) is int
    assert SamplingOptions(times=[1, 0]) == SamplingOptions(times=(1.0, 0.0))


@pytest.mark.parametrize("name", ["seed", "nfe", "num_samples", "length", "batch_size"])
@pytest.mark.parametrize("value", [0.0, 8.0, "8", True, [[8]], NAN, np.float64(8)])
def test_values_that_are_no_whole_numbers_are_refused(bundle, name, value):
    with pytest.raises(UsageError, match=f"^{name} is a whole number; got"):
        didi.stream(bundle, **{name: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": None}, "seed is a whole number; got None"),
        ({"num_samples": 0}, "num_samples is 1 or more; got 0"),
        ({"length": 8}, r"length lies in \[1, 7\]; got 8"),
        ({"temperature": "1"}, "temperature is a finite number; got '1'"),
        ({"temperature": -1e-40}, r"temperature lies in \[0, 1e\+30\]; got -1e-40"),
        ({"top_p": NAN}, r"top_p lies in \(0, 1\]; got nan"),
        ({"times": 1.0}, "times fall from 1 to 0"),
        ({"times": (1, None, 0)}, "times is a finite number; got None"),
        ({"grid": "square"}, "a time grid is one of uniform, cosine; got 'square'"),
        ({"sampler": ["guided"]}, r"a sampler is one of .*; got \['guided'\]"),
        ({"role": ["student"]}, r"a role is one of student, teacher, autoregressive; got \['student'\]"),
        ({"is_whole_batch": 1}, "is_whole_batch is one of True, False; got 1"),
        ({"guidance": {"select": "best"}}, "guidance is a Guidance; got {'select': 'best'}"),
        ({"entropy_bound": INF}, "entropy_bound is a finite number and is 0 or more; got inf"),
        ({"options": {"sampler": "guided"}}, "options is a SamplingOptions; got"),
        ({"prefix": 3}, "prefix is a str; got 3"),
    ],
)
def test_invalid_values_are_refused(bundle, arguments, message):
    for call in (didi.stream, didi.generate):
        with pytest.raises(UsageError, match=message) as caught:
            call(bundle, **arguments)
        assert "\n" not in str(caught.value)


def test_the_name_of_a_bundle_is_refused():
    for call in (didi.stream, didi.generate, didi.evaluate):
        with pytest.raises(UsageError, match="bundle is a Bundle; got 'exact'"):
            call("exact")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (didi.Guidance, {"select": "bset"}, "select is one of sample, best; got 'bset'; did you mean 'best'"),
        (didi.Guidance, {"reduction": "max"}, "reduction is one of masked-mean, mean, sum; got 'max'"),
        (didi.Guidance, {"num_candidates": 2.5}, "num_candidates is a whole number; got 2.5"),
        (didi.Guidance, {"guidance_scale": NAN}, r"guidance_scale lies in \[-1e\+30, 1e\+30\]; got nan"),
        (didi.Guidance, {"guidance_scale": -INF}, "guidance_scale lies in .*; got -inf"),
        (didi.Guidance, {"gradient_clamp": INF}, "gradient_clamp is a finite number and is 0 or more; got inf"),
        (didi.Guidance, {"rank_temperature": 1e-40}, "rank_temperature lies in"),
        (ConfidenceOrder, {"gumbel": INF}, r"gumbel lies in \[0, 1e\+30\]; got inf"),
        (ConfidenceOrder, {"measure": 1}, "a confidence measure is one of probability, margin, entropy; got 1"),
        (Remasking, {"eta": "a"}, "remasking eta is a finite number; got 'a'"),
        (Remasking, {"t_on": NAN}, "t_on is a finite number; got nan"),
        (Remasking, {"strategy": None}, "a remasking strategy is one of cap, rescale; got None"),
    ],
)
def test_settings_are_checked_at_construction(kind, settings, message):
    with pytest.raises(UsageError, match=message):
        kind(**settings)


def test_numbers_of_settings_become_python_numbers():
    guidance = didi.Guidance(num_candidates=np.int64(3), guidance_scale=np.float32(2), tilted_fraction=0)
    assert [type(value) for value in (guidance.num_candidates, guidance.guidance_scale)] == [int, float]
    assert type(guidance.tilted_fraction) is float
    assert EntropyBounded(None, None, entropy_bound=np.float32(2)).entropy_bound == 2.0


def test_too_many_moves_are_refused_before_the_grid_is_made(bundle):
    message = rf"nfe lies in \[1, {MAX_NFE}\]; got 1000000000: first-hitting sampling"
    with pytest.raises(UsageError, match=message):
        didi.stream(bundle, nfe=1_000_000_000)
    assert len(time_grid(MAX_NFE)) == MAX_NFE + 1
    assert didi.generate(bundle, num_samples=1, sampler="first-hitting", nfe=MAX_NFE + 1).nfe == bundle.network().length
    with pytest.raises(UsageError, match="nfe lies in"):
        time_grid(MAX_NFE + 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"nfe": (n for n in (2, 4))}, [("student", "ancestral", 2), ("student", "ancestral", 4)]),
        ({"nfe": np.array([2, 4])}, [("student", "ancestral", 2), ("student", "ancestral", 4)]),
        ({"nfe": np.int64(4)}, [("student", "ancestral", 4)]),
        ({"role": (r for r in ("student", "teacher"))}, [("student", "ancestral", 2), ("teacher", "ancestral", 2)]),
        ({"temperature": 0.5}, [("student", "ancestral", 2)]),
        ({"options": SamplingOptions(role="teacher", sampler="guided")}, [("teacher", "guided", 2)]),
        ({"options": SamplingOptions(role="teacher"), "sampler": "tau-leaping"}, [("teacher", "tau-leaping", 2)]),
    ],
)
def test_an_evaluation_takes_one_value_or_several_and_all_of_its_options(markov, arguments, expected):
    assert rows(markov, **arguments) == expected


@pytest.mark.parametrize("convert", [torch.Tensor.int, torch.Tensor.numpy, torch.Tensor.tolist])
def test_data_may_have_any_integer_type(markov, convert):
    tokens = torch.arange(28).view(4, 7) % 4
    row, converted_row = (
        didi.evaluate(markov, nfe=(), num_samples=4, judge=JUDGE, data=data)[0] for data in (tokens, convert(tokens))
    )
    assert row.gen_ppl == converted_row.gen_ppl
    assert rows(markov, data=convert(tokens)) == [("data", "", 0), ("student", "ancestral", 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nfe": [4.0]}, "nfe is a whole number; got 4.0"),
        ({"nfe": []}, "nfe is one value or more; got none"),
        ({"role": []}, "role is one value or more; got none"),
        ({"sampler": []}, "sampler is one value or more; got none"),
        ({"seed": "0"}, "seed is a whole number; got '0'"),
        ({"judge": 3}, "a judge is a name"),
        ({"data": torch.zeros(2, 7)}, "data is a table of whole numbers"),
        ({"data": torch.zeros(0, 7, dtype=torch.long)}, "data is a table of whole numbers"),
        ({"data": torch.zeros(7, dtype=torch.long)}, "data is a table of whole numbers"),
        ({"data": "news"}, "data is a table of whole numbers"),
        ({"data": torch.full((2, 7), -1)}, "data has token ids from 0 to 32, the bundle's symbols; got -1"),
        ({"data": torch.zeros(2, 8, dtype=torch.long)}, "data has rows of at most 7 tokens"),
        ({"options": SamplingOptions(sampler="guided"), "sampler": "ancestral"}, "give sampler or options.sampler"),
        ({"options": SamplingOptions(role="teacher"), "role": "student"}, "give role or options.role"),
        ({"options": SamplingOptions(temperature=0.5), "temperature": [0.7]}, "give temperature or options.temp"),
        ({"options": SamplingOptions(grid="cosine"), "sampler": "first-hitting"}, "none of first-hitting reads grid"),
    ],
)
def test_an_evaluation_refuses_arguments_that_it_would_ignore_or_cannot_read(markov, arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        rows(markov, **arguments)
    assert "\n" not in str(caught.value)
