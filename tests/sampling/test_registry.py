"""A setting is accepted if the sampler reads it, and otherwise refused with the names of samplers that read it."""

import itertools
from dataclasses import fields, replace

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.evaluation.evaluate import evaluate
from didi.evaluation.perplexity import ExactJudge
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.dit import DiT
from didi.models.initial_state import InitialState
from didi.sampling.confidence import ConfidenceOrder
from didi.sampling.generate import generate
from didi.sampling.guided import Guidance
from didi.sampling.options import OWN_SETTINGS, SamplingOptions
from didi.sampling.registry import SAMPLERS, find_sampler, make_sampler, samplers_of, with_read_options
from didi.sampling.remasking import Remasking
from didi.sampling.reparameterized import Reparameterization

LENGTH = 6
MASKED = samplers_of("absorbing")
VALUES = {
    "guidance": Guidance(num_candidates=2),
    "order": ConfidenceOrder("margin"),
    "entropy_bound": 2.5,
    "remask": Remasking("rescale", 0.5),
    "initial_state": InitialState(0.5, 0.1),
    "reparam": Reparameterization(repetition=0.5),
    "grid": "cosine",
    "times": (1.0, 0.4, 0.0),
}
ON_A_GRID = {"ancestral", "guided", "tau-leaping", "confidence", "remasking", "published", "reparam"}
NFE = {"one-step": 1}
READERS = {
    "guidance": {"guided"},
    "order": {"confidence"},
    "entropy_bound": {"entropy-bounded"},
    "remask": {"remasking"},
    "initial_state": {"one-step"},
    "reparam": {"reparam"},
    "grid": ON_A_GRID,
    "times": ON_A_GRID,
}


@pytest.fixture(scope="module")
def bundle(make_dit, make_discriminator):
    torch.manual_seed(0)
    shape = AutoregressiveConfig(vocab_size=33, mask_id=32, length=LENGTH, hidden_size=8, num_blocks=1, num_heads=2)
    network = make_dit(vocab_size=33, length=LENGTH)
    return Bundle(
        student=network, discriminator=make_discriminator(network), autoregressive=AutoregressiveLM(shape).eval()
    )


def test_the_tables_of_this_file_cover_every_sampler_and_setting():
    assert {*OWN_SETTINGS, "grid", "times"} == set(READERS)
    assert set(MASKED) == ON_A_GRID | {"first-hitting", "entropy-bounded", "one-step"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_entries_of_a_sampler_name_agree_in_grid_number_of_moves_and_defaults(sampler):
    first, *others = (
        (
            kind.ignores_grid,
            kind.num_moves,
            {
                field.name: field.default
                for field in fields(kind.sampler)
                if field.name in kind.reads and field.name in OWN_SETTINGS
            },
        )
        for kind in SAMPLERS[sampler]
    )
    assert all(other == first for other in others)


@pytest.mark.parametrize(("sampler", "setting"), list(itertools.product(MASKED, READERS)))
def test_a_setting_is_accepted_if_and_only_if_it_is_read(bundle, sampler, setting):
    options = SamplingOptions(sampler, **{setting: VALUES[setting]})
    if sampler in READERS[setting]:
        built = make_sampler(bundle, options, 2)
        if setting in OWN_SETTINGS:
            assert getattr(built, setting) == VALUES[setting]
        drawn = generate(bundle, num_samples=1, nfe=NFE.get(sampler, 2), options=options)
        assert drawn.nfe == NFE.get(sampler, 2) or sampler == "entropy-bounded"
        assert with_read_options(options, bundle) == options
        return
    with pytest.raises(UsageError, match=f"^{sampler} sampling does not read {setting}, which ") as caught:
        generate(bundle, num_samples=1, nfe=NFE.get(sampler, 2), options=options)
    readers = str(caught.value).partition("which ")[2].rpartition(" do")[0]
    assert set(readers.split(", ")) == READERS[setting]
    assert "\n" not in str(caught.value)
    assert with_read_options(options, bundle) == SamplingOptions(sampler)


@pytest.mark.parametrize("setting", READERS)
def test_an_autoregressive_network_reads_none_of_the_settings(bundle, setting):
    options = SamplingOptions(role="autoregressive", **{setting: VALUES[setting]})
    with pytest.raises(UsageError, match=f"does not read {setting}"):
        make_sampler(bundle, options, 2)
    assert with_read_options(options, bundle) == SamplingOptions(role="autoregressive")


@pytest.mark.parametrize("sampler", MASKED)
def test_every_sampler_gets_the_common_options(bundle, sampler):
    built = make_sampler(bundle, SamplingOptions(sampler, temperature=0.5, top_p=0.9), 2)
    assert (built.token_distribution.temperature, built.token_distribution.top_p) == (0.5, 0.9)
    assert built.denoiser is bundle.student
    assert built.process is bundle.process


@pytest.mark.parametrize("sampler", MASKED)
def test_settings_that_are_left_out_have_the_defaults_of_the_sampler(bundle, sampler):
    built = make_sampler(bundle, SamplingOptions(sampler), 2)
    defaults = {field.name: field.default for field in fields(built)}
    for name in OWN_SETTINGS:
        if name in defaults:
            assert getattr(built, name) == defaults[name]


@pytest.mark.parametrize("sampler", sorted({*SAMPLERS} - {*samplers_of("uniform")}))
def test_an_unsupported_process_is_refused(tiny_config, sampler):
    network = DiT(replace(tiny_config(vocab_size=5, length=LENGTH), mask_id=None))
    bundle = Bundle(teacher=network, process=Uniform(5))
    with pytest.raises(UsageError, match=f"{sampler} does not sample uniform diffusion"):
        generate(bundle, sampler=sampler)


def test_an_unknown_sampler_is_refused_with_the_names_of_all():
    with pytest.raises(UsageError, match=f"a sampler is one of {', '.join(SAMPLERS)}; got 'heun'"):
        find_sampler("heun")


JUDGE = ExactJudge(MarkovChain())


@pytest.mark.slow
def test_an_evaluation_passes_each_sampler_the_options_that_it_reads(bundle):
    chosen = SamplingOptions(guidance=VALUES["guidance"], entropy_bound=2.5, times=(1.0, 0.4, 0.0))
    samplers = ["ancestral", "guided", "entropy-bounded"]
    roles = ["student", "autoregressive"]
    rows = evaluate(bundle, nfe=[4], num_samples=2, sampler=samplers, options=chosen, role=roles, judge=JUDGE)
    results = {(row.role, row.sampler): (row.nfe, row.grid, row.settings) for row in rows}
    assert results["student", "ancestral"] == (2, "given", "times 1 0.4 0")
    assert "num_candidates 2" in results["student", "guided"][2]
    assert "entropy_bound" not in results["student", "guided"][2]
    assert results["student", "entropy-bounded"] == (LENGTH, "uniform", "entropy_bound 2.5")
    assert results["autoregressive", "ancestral"] == (LENGTH, "uniform", "")


@pytest.mark.parametrize("setting", OWN_SETTINGS)
def test_an_evaluation_refuses_options_that_none_of_its_samplers_reads(bundle, setting):
    options = SamplingOptions(**{setting: VALUES[setting]})
    with pytest.raises(UsageError, match=f"none of ancestral, tau-leaping reads {setting}"):
        evaluate(bundle, nfe=[1], sampler=["ancestral", "tau-leaping"], options=options, judge=JUDGE)
    with pytest.raises(UsageError, match=f"left-to-right sampling does not read {setting}"):
        evaluate(bundle, nfe=[1], role="autoregressive", options=options, judge=JUDGE)
