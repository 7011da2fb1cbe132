"""One-step sampling: its distribution, its one pass, and when it is the default."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import didi
from didi.apps.cli import main
from didi.data.source import open_source
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.errors import UsageError
from didi.evaluation.exact import one_step
from didi.evaluation.exact.rows import ExactRows
from didi.models.bundle import Bundle
from didi.models.inference import for_inference
from didi.models.initial_state import InitialState
from didi.sampling.base import time_grid
from didi.sampling.completion import completed
from didi.sampling.one_step import OneStep
from didi.sampling.options import SamplingOptions
from didi.sampling.record import sampling_record
from didi.sampling.registry import sampler_of

LENGTH = 3


@pytest.fixture
def few_draws(monkeypatch):
    """Embedding noise is averaged over fewer draws."""
    monkeypatch.setattr(one_step, "NOISE_ROWS", 4096)


@pytest.fixture(scope="module")
def bundle(make_dit):
    """A random student and a random teacher of 2 symbols and the mask."""
    student, teacher = (make_dit(vocab_size=3, length=LENGTH, seed=seed) for seed in (0, 1))
    return Bundle(student=student, teacher=teacher, initial_state=InitialState(0.7, 0.3), intended_nfe=1)


@pytest.mark.parametrize(
    "state", [InitialState(), InitialState(0.7), InitialState(0.3), InitialState(0.7, 0.5)], ids=str
)
@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("token_distribution", [{}, {"temperature": 0.5}, {"top_p": 0.9}], ids=str)
def test_samples_have_the_distribution_of_the_mixture(bundle, state, token_distribution, chi_square):
    bundle = replace(bundle, initial_state=state)
    options = SamplingOptions(batch_size=2000, **token_distribution)
    p = ExactRows(bundle).distribution(2, options, 1)
    tokens = didi.generate(bundle, num_samples=2000, seed=1, options=options).tokens
    possible = p * 2000 >= 5
    drawn = (tokens * torch.tensor([4, 2, 1])).sum(1)
    assert chi_square(drawn[possible[drawn]], p * possible) > 1e-3
    assert float(possible[drawn].double().mean()) > 0.95


def test_one_step_sampling_from_masks_only_is_ancestral_sampling_with_one_move(bundle):
    rows = ExactRows(bundle)
    one_step_probs, ancestral_probs = (
        rows.distribution(2, SamplingOptions(sampler=name, role="teacher"), 1) for name in ("one-step", "ancestral")
    )
    torch.testing.assert_close(one_step_probs, ancestral_probs)


def test_the_noise_of_a_sequence_does_not_depend_on_the_batch(bundle):
    whole = didi.generate(bundle, num_samples=7, seed=3).tokens
    assert torch.equal(didi.generate(bundle, num_samples=7, seed=3, batch_size=2).tokens, whole)
    assert not torch.equal(didi.generate(bundle, num_samples=7, seed=4).tokens, whole)


def test_a_sample_needs_one_pass_in_one_move(bundle):
    (move,) = didi.stream(bundle, num_samples=5)
    assert (move.number, move.t, move.network_passes.tolist()) == (1, 0.0, [1] * 5)
    assert move.is_changed.all()
    drawn = didi.generate(bundle, num_samples=5, nfe=1)
    assert (drawn.nfe, drawn.sampler) == (1, "one-step")


def test_the_initial_state_contains_the_given_tokens(bundle, monkeypatch):
    tokens = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 0]])
    is_free = torch.tensor([[False, True, True], [True, True, False], [False, False, False]])
    canvas, inputs = Canvas.given(tokens, is_free), []
    network, features_of_embeddings = bundle.student, bundle.student.features_of_embeddings

    def recorded(embedded, *rest):
        inputs.append(embedded)
        return features_of_embeddings(embedded, *rest)

    monkeypatch.setattr(network, "features_of_embeddings", recorded)
    sampler = OneStep(network, bundle.process, initial_state=bundle.initial_state)
    (step,) = sampler(canvas, time_grid(1), SequenceNoise(0, range(3)))
    assert torch.equal(step.z[~is_free], tokens[~is_free])
    assert torch.equal(inputs[0][~is_free], network.embed(tokens)[~is_free])
    assert step.network_passes.tolist() == [1, 1, 0]
    assert torch.equal(completed(bundle, canvas, indices=range(3), seed=0), step.z)


@pytest.mark.parametrize("nfe", [2, 16])
def test_another_number_of_moves_is_refused(bundle, nfe):
    for call in (didi.generate, didi.stream):
        with pytest.raises(UsageError, match=f"one-step sampling has nfe 1; got {nfe}: leave nfe out") as caught:
            call(bundle, nfe=nfe)
        assert "\n" not in str(caught.value)
    assert didi.generate(bundle, nfe=nfe, num_samples=1, sampler="ancestral").nfe == nfe


def test_one_step_sampling_is_the_default_of_a_student_with_an_initial_state(bundle):
    plain = replace(bundle, initial_state=None)
    assert sampler_of(bundle, SamplingOptions()) == sampler_of(bundle, SamplingOptions(role="student")) == "one-step"
    assert sampler_of(bundle, SamplingOptions(role="teacher")) == "ancestral"
    assert sampler_of(plain, SamplingOptions()) == "ancestral"
    assert sampler_of(bundle, SamplingOptions("confidence")) == "confidence"
    teacher = didi.generate(bundle, role="teacher", num_samples=2)
    assert (teacher.sampler, teacher.nfe) == ("ancestral", 16)


@pytest.mark.usefixtures("few_draws")
def test_the_initial_state_of_the_options_overrides_that_of_the_bundle(bundle):
    other = SamplingOptions(initial_state=InitialState(0.3))
    expected = ExactRows(bundle).distribution(2, SamplingOptions(initial_state=bundle.initial_state), 1)
    torch.testing.assert_close(ExactRows(bundle).distribution(2, SamplingOptions(), 1), expected)
    assert not torch.allclose(ExactRows(bundle).distribution(2, other, 1), expected, rtol=0.02)


def test_the_sampling_record_contains_the_initial_state(bundle):
    record = sampling_record(bundle, SamplingOptions(), nfe=1, length=LENGTH)
    assert (record["sampler"], record["initial_state"]) == ("one-step", {"mask_ratio": 0.7, "noise_std": 0.3})
    teacher_record = sampling_record(bundle, SamplingOptions(role="teacher"), nfe=16, length=LENGTH)
    assert (teacher_record["sampler"], "initial_state" in teacher_record) == ("ancestral", False)


@pytest.mark.parametrize("numerics", ["bfloat16", "int8"])
def test_int8_and_bfloat16_networks_read_embeddings(bundle, numerics):
    low_precision = for_inference(bundle, numerics)
    tokens = torch.randint(3, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    exact = bundle.student.features_of_embeddings(bundle.student.embed(tokens))
    with torch.inference_mode():
        approximate = low_precision.student.features_of_embeddings(low_precision.student.embed(tokens))
    torch.testing.assert_close(approximate, exact, rtol=0.2, atol=0.2)
    assert not torch.equal(approximate, exact)
    assert didi.generate(low_precision, num_samples=2).network_passes.tolist() == [1, 1]


def test_the_mask_is_never_drawn_and_all_other_symbols_can_be(make_dit):
    bundle = Bundle(student=make_dit(vocab_size=9, length=20), initial_state=InitialState(0.5, 0.1))
    assert didi.generate(bundle, num_samples=64).tokens.unique().tolist() == list(range(8))


@pytest.fixture
def run(monkeypatch):
    """Run the command in this process."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["didi", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0

    return call


@pytest.fixture(scope="module")
def saved(make_dit, tmp_path_factory):
    student, teacher = (make_dit(vocab_size=5, length=4, seed=seed) for seed in (0, 1))
    bundle = Bundle(
        student=student, teacher=teacher, initial_state=InitialState(0.5, 0.1), intended_nfe=1,
        tokenizer=open_source("exact", length=4).tokenizer, provenance={"corpus": "exact"},
    )  # fmt: skip
    return bundle.save_pretrained(tmp_path_factory.mktemp("one-step") / "bundle")


@pytest.mark.slow
@pytest.mark.usefixtures("few_draws")
def test_the_commands_use_one_step_sampling_by_default(saved, tmp_path, capsys, run):
    run("generate", "--model", saved, "--num-samples", "2", "--format", "jsonl")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(row["sampler"], row["nfe"], row["initial_state"]["noise_std"]) for row in rows} == {("one-step", 1, 0.1)}
    flags = ["--num-samples", "4", "--out", str(tmp_path / "out"), "--role", "student", "teacher", "--nfe", "1", "2"]
    run("evaluate", "--model", saved, *flags)
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())
    settings = [(row["role"], row["sampler"], row["nfe"], row["settings"]) for row in rows]
    assert settings == [
        ("student", "one-step", 1, "mask_ratio 0.5, noise_std 0.1"),
        ("teacher", "ancestral", 1, ""),
        ("teacher", "ancestral", 2, ""),
    ]
    assert rows[0]["kl"] > 0
    assert rows[0]["note"].startswith("embedding noise averaged over draws: KL is high by about ")
    assert rows[1]["note"] == ""


def test_a_flag_changes_one_setting_of_the_bundle(saved, capsys, run):
    run("generate", "--model", saved, "--num-samples", 1, "--format", "jsonl", "--initial-state.noise-std", 0)
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["initial_state"] == {"mask_ratio": 0.5, "noise_std": 0.0}
