"""Flags of sampler settings override those of the bundle, and are refused with another sampler."""

import json

import pytest

from didi.apps.options import GuidanceFlags, OrderFlags, guidance_from_flags, settings_from_flags
from didi.models.bundle import load
from didi.models.guidance import Guidance
from didi.sampling.confidence import ConfidenceOrder


@pytest.mark.slow
def test_flags_change_the_guidance_of_the_bundle_field_by_field():
    bundle = load("tiny-news")
    assert guidance_from_flags(GuidanceFlags(), bundle) is None
    changed = guidance_from_flags(GuidanceFlags(tilted_fraction=0.25), bundle)
    assert changed == Guidance(tilted_fraction=0.25, reduction="masked-mean", select="best")
    assert guidance_from_flags(GuidanceFlags(num_candidates=2), load("exact")) == Guidance(num_candidates=2)
    # A flag with the value of the default is one that is given.
    assert settings_from_flags(OrderFlags(gumbel=0.0), ConfidenceOrder()) == ConfidenceOrder()


@pytest.mark.slow
def test_the_guidance_is_by_default_that_of_the_bundle(didi):
    words = ["generate", "--model", "tiny-news", "--nfe", "4", "--num-samples", "1", "--length", "8"]
    words += ["--format", "jsonl", "--sampler", "guided"]
    flags = ["--guidance.tilted-fraction", "0", "--guidance.select", "best", "--guidance.reduction", "masked-mean"]
    plain, same = (json.loads(didi(*words, *more)[1]) for more in ([], flags))
    other = json.loads(didi(*words, "--guidance.tilted-fraction", "1")[1])
    assert plain == same
    assert other["discriminator_passes"] != plain["discriminator_passes"]


@pytest.mark.parametrize(
    ("flags", "name", "reader"),
    [
        (["--entropy-bound", "9"], "entropy_bound", "entropy-bounded does"),
        (["--entropy-bound", "1"], "entropy_bound", "entropy-bounded does"),  # refused although it is the default
        (["--guidance.num-candidates", "4"], "guidance", "guided does"),
        (["--order.gumbel", "0"], "order", "confidence does"),
        (["--remask.eta", "0.02"], "remask", "remasking does"),
    ],
)
def test_a_setting_of_another_sampler_is_refused(didi, flags, name, reader):
    status, out, err = didi("generate", "--model", "exact", "--sampler", "ancestral", *flags)
    assert (status, out) == (2, "")
    assert err.startswith(f"didi: ancestral sampling does not read {name}, which {reader}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("method", ["guided", "guided floor"])
def test_bench_takes_guidance_where_a_method_reads_it(didi, monkeypatch, method):
    loads = []
    monkeypatch.setattr("didi.apps.bench.compare", lambda _, timed, **__: loads.extend(timed) or [])
    monkeypatch.setattr("didi.apps.bench.speed_table", lambda *_, **__: "")
    assert didi("bench", "--model", "markov", "--methods", method, "--guidance.num-candidates", "3")[0] == 0
    assert {load.guidance.num_candidates for load in loads} == {3}


@pytest.mark.slow
def test_too_many_moves_and_samples_are_refused_in_one_line(didi):
    for flags, message in (
        (["--nfe", "1000000000"], "nfe lies in [1, 65536]; got 1000000000"),
        (["--num-samples", "1000000000000"], "lower num_samples to"),
        (["--batch-size", "1000000000", "--num-samples", "100000"], "lower batch_size to"),
    ):
        status, out, err = didi("generate", "--model", "tiny-news", *flags)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
