"""A bundle whose only network is a GPT-2 of ``transformers``: texts, likelihoods, evaluations and times."""

import io
import json

import pytest
import torch
from rich.console import Console

import didi as package
from didi.apps.convert import run_convert
from didi.apps.generate import cuts_words
from didi.apps.live import MASK as SHOWN_MASK
from didi.apps.live import LiveView
from didi.evaluation.evaluate import evaluate
from didi.evaluation.harness import HarnessModel
from didi.evaluation.joint import JointSettings, joint_divergence
from didi.evaluation.perplexity import Scores

from .gpt2_files import BEGIN, DOCUMENTS, LENGTH, VOCAB, gpt2_folder, random_gpt2, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt2")
    source = gpt2_folder(path / "hub", random_gpt2())
    tokenizer().save(str(source / "tokenizer.json"))
    run_convert(["gpt2", str(source), "--out", str(path / "bundle")])
    return path / "bundle"


@pytest.fixture(scope="module")
def bundle(folder):
    return package.load(folder)


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(DOCUMENTS * 4))
    return file


def records_of(out):
    """The records in lines of JSON."""
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.slow
def test_texts_continue_their_prefix_at_any_batch_size(didi, folder, bundle, tmp_path):
    words = ["generate", "--model", folder, "--num-samples", "3", "--format", "jsonl", "--seed", "4"]
    status, out, _ = didi(*words, "--prefix", "number 7 of")
    assert status == 0
    records, prefix_ids = records_of(out), bundle.tokenizer.encode("number 7 of").ids
    assert len({tuple(record["tokens"]) for record in records}) == 3
    for record in records:
        assert record["tokens"][: len(prefix_ids)] == prefix_ids
        assert record["text"].startswith("number 7 of")
        assert (record["role"], record["nfe"], record["network_passes"]) == (
            "autoregressive",
            LENGTH,
            LENGTH - len(prefix_ids),
        )
        assert (record["sampler"], record["seed"], record["length"]) == ("ancestral", 4, LENGTH)
        assert max(record["tokens"]) < VOCAB
    again = records_of(didi(*words, "--prefix", "number 7 of", "--batch-size", "1")[1])
    assert [record["tokens"] for record in again] == [record["tokens"] for record in records]
    (tmp_path / "prompts.txt").write_text("number 7 of\nof a few\n")
    prompted = records_of(didi(*words, "--prompts", tmp_path / "prompts.txt")[1])
    assert [record["prefix"] for record in prompted] == ["number 7 of"] * 3 + ["of a few"] * 3


def test_it_does_not_infill(didi, folder):
    status, out, err = didi("generate", "--model", folder, "--infill", "number [MASK] of")
    assert (status, out) == (2, "")
    assert "continues a prefix and cannot infill: give a prefix instead" in err


@pytest.mark.slow
def test_a_text_begins_with_its_first_word(didi, folder, bundle):
    assert not cuts_words(bundle)
    assert cuts_words(package.load("tiny-news"))
    public = package.Bundle(autoregressive=package.load(folder).autoregressive, tokenizer=bundle.tokenizer)
    assert not cuts_words(public, "autoregressive")
    out = didi("generate", "--model", folder, "--num-samples", "1")[1]
    (record,) = records_of(didi("generate", "--model", folder, "--num-samples", "1", "--format", "jsonl")[1])
    assert out == f"--- 1 of 1\n{record['text']}\n\n"


def test_the_live_view_shows_tokens_that_are_not_sampled_yet_as_masks(bundle, monkeypatch):
    monkeypatch.setattr("didi.apps.live.PAUSE", 0)
    console = Console(file=io.StringIO(), record=True, width=200)
    with LiveView(bundle, console=console) as view:
        moves = list(package.stream(bundle, seed=1))
        view(moves[LENGTH - 3])
    assert SHOWN_MASK * 2 in console.export_text()
    assert (moves[LENGTH - 3].tokens[:, -2:] == bundle.process.mask_id).all()


def test_its_likelihood_is_exact_on_rows_of_the_layout_stream(didi, folder, bundle, corpus, tmp_path):
    status, _, err = didi("likelihood", "--model", folder, "--data", corpus, "--out", tmp_path / "out")
    assert status == 0, err
    record = json.loads((tmp_path / "out" / "likelihood.json").read_text())
    (row,) = record["rows"]
    assert (row["role"], row["is_exact"], row["block_layout"]) == ("autoregressive", True, "stream")
    table = (tmp_path / "out" / "likelihood.md").read_text()
    assert f"blocks of {LENGTH} tokens" in table


class Judge:
    name = "judge"

    def score(self, texts, tokens):
        return Scores(
            torch.full((len(tokens),), 30.0, dtype=torch.float64), torch.full((len(tokens),), tokens.shape[1])
        )


@pytest.mark.slow
def test_an_evaluation_has_its_rows_nll_and_figure(bundle, tmp_path):
    rows = torch.randint(0, VOCAB, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    (data, *sampled) = evaluate(bundle, num_samples=3, judge=Judge(), data=rows, temperature=[0.8, 1.0], out=tmp_path)
    assert data.role == "data"
    assert [(row.role, row.nfe, row.temperature) for row in sampled] == [
        ("autoregressive", LENGTH, t) for t in (0.8, 1)
    ]
    assert sampled[0].nelbo == pytest.approx(float(bundle.autoregressive.nll(rows).detach().mean()), rel=1e-5)
    assert (tmp_path / "perplexity.png").is_file()


@pytest.mark.slow
def test_an_evaluation_takes_a_text_file_as_corpus(didi, folder, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("didi.evaluation.evaluate.load_judge", lambda *_, **__: Judge())
    words = ["evaluate", "--model", folder, "--num-samples", "2", "--data", corpus, "--out", tmp_path / "out"]
    status, _, err = didi(*words)
    assert status == 0, err
    roles = [row["role"] for row in json.loads((tmp_path / "out" / "metrics.json").read_text())]
    assert roles == ["data", "autoregressive"]


@pytest.mark.slow
def test_roles_of_one_bundle_are_compared_in_one_frontier(bundle, make_dit, tmp_path):
    """Student, teacher and GPT-2 over the same tokens."""
    student, teacher = (make_dit(vocab_size=VOCAB + 1, length=LENGTH, seed=seed) for seed in (1, 2))
    whole = package.Bundle(
        student=student, teacher=teacher, autoregressive=bundle.autoregressive, tokenizer=bundle.tokenizer
    )
    roles = ("student", "teacher", "autoregressive")
    evaluate(whole, role=roles, nfe=[2], num_samples=3, judge=Judge(), temperature=[0.7, 1.0], out=tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert f"| autoregressive, ancestral, {LENGTH} NFE | student, ancestral, 2 NFE |" in report
    assert "![Perplexity against entropy](frontier.png)" in report


def test_the_harness_conditions_on_its_begin_symbol(bundle):
    model = HarnessModel(bundle)
    text = "number 7 of"
    ids = bundle.tokenizer.encode(text).ids

    class Request:
        args = (text,)

    with torch.no_grad():
        gpt2 = random_gpt2()
        logits = gpt2(torch.tensor([[BEGIN, *ids[:-1]]])).logits[0].log_softmax(-1)
    expected = float(logits[range(len(ids)), ids].sum())
    assert model.loglikelihood_rolling([Request])[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_it_is_a_reference_of_joint_divergences(bundle):
    tokens = package.generate(bundle, num_samples=8, seed=3).tokens
    assert int(tokens.max()) < VOCAB
    tokens[0, 0] = VOCAB - 1  # the last symbol is a token and no mask
    estimate = joint_divergence(tokens, bundle.autoregressive, JointSettings(folds=2, epochs=1, learning_rate=1e-6))
    assert abs(estimate.kl) < 0.1
    with pytest.raises(package.UsageError, match=f"has {VOCAB} symbols; got token {VOCAB}"):
        joint_divergence(torch.full_like(tokens, VOCAB), bundle.autoregressive)


@pytest.mark.slow
def test_it_is_timed_alone(didi, folder, tmp_path):
    words = ["bench", "--model", folder, "--batch-size", "2", "--rounds", "1", "--no-memory"]
    status, out, err = didi(*words, "--methods", "autoregressive", "--out", tmp_path / "out")
    assert status == 0, err
    (row,) = json.loads((tmp_path / "out" / "bench.json").read_text())["rows"]
    assert (row["method"], row["nfe"], row["length"]) == ("autoregressive", LENGTH, LENGTH)
    status, out, err = didi(*words)
    assert (status, out) == (2, "")
    assert "ancestral, trunk, published sample a denoiser" in err
    assert "use --methods autoregressive" in err


def test_a_longer_sequence_than_the_baseline_reads_is_not_timed(didi, bundle, make_dit, tmp_path):
    student = make_dit(vocab_size=VOCAB + 1, length=LENGTH + 1)
    both = package.Bundle(student=student, autoregressive=bundle.autoregressive)
    package.save(both, tmp_path / "both")
    status, _, err = didi("bench", "--model", tmp_path / "both", "--rounds", "1", "--no-memory")
    assert status == 2
    assert f"length lies in [1, {LENGTH}], the network's context; got {LENGTH + 1}" in err


def test_its_model_card_does_not_mention_diffusion(folder):
    card = (folder / "README.md").read_text()
    assert "# Autoregressive bundle" in card
    assert "diffusion" not in card.lower()
