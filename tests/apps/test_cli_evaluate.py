"""``didi likelihood`` and ``didi evaluate`` on a distilled bundle."""

import json
import math

import pytest

from didi.models.bundle import Bundle, save


@pytest.fixture
def few_rows(monkeypatch):
    """Fewer held-out rows and fewer training rows of the trigram anchor, for speed."""
    monkeypatch.setattr("didi.data.source.MARKOV_HELD_OUT_ROWS", 256)
    monkeypatch.setattr("didi.evaluation.anchors.NGRAM_ROWS", 1024)


@pytest.mark.slow
def test_likelihood_scores_every_network_on_the_models_own_corpus(didi, distilled, tmp_path):
    words = ["likelihood", "--model", distilled / "bundle", "--num-sequences", "20", "--num-draws", "2"]
    status, out, err = didi(*words, "--out", tmp_path / "new")
    assert status == 0
    assert "| markov | ≤ " in out
    assert "markov, student: " in err
    rows = json.loads((tmp_path / "new" / "likelihood.json").read_text())["rows"]
    assert [(row["data"], row["role"]) for row in rows] == [("markov", "teacher"), ("markov", "student")]
    assert rows[0]["perplexity"] < rows[1]["perplexity"]  # the chain has 3.9; the student was not trained to predict
    assert 3.5 < rows[0]["perplexity"] < 6
    assert out.startswith((tmp_path / "new" / "likelihood.md").read_text())


@pytest.mark.slow
def test_evaluate_takes_a_sweep_measures_anchors_and_writes_every_sample(didi, distilled, tmp_path, few_rows):
    words = ["evaluate", "--model", distilled / "bundle", "--role", "teacher", "student", "--nfe", "4", "--anchors"]
    words += ["--temperature", "0.9", "1", "--top-p", "0.9", "--data", "markov", "--num-samples", "16"]
    status, out, _ = didi(*words, "--out", tmp_path)
    assert status == 0
    rows = json.loads((tmp_path / "metrics.json").read_text())
    assert [row["role"] for row in rows[:4]] == ["data", "shuffled words", "repetition", "trigram model"]
    assert [(row["role"], row["temperature"], row["top_p"]) for row in rows[4:]] == [
        (role, *setting) for setting in ((0.9, 1), (1, 1), (1, 0.9)) for role in ("teacher", "student")
    ]
    assert rows[0]["gen_ppl"] < rows[1]["gen_ppl"] < rows[2]["gen_ppl"]
    assert rows[2]["entropy"] == 0
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 16 * len(rows)
    report = (tmp_path / "report.md").read_text()
    assert "## Pair by pair" in report
    assert "| student, ancestral, 4 NFE | teacher, ancestral, 4 NFE |" in report
    assert "temperature 0.9" in out


@pytest.mark.slow
def test_evaluate_writes_rows_report_and_figure(didi, distilled, tmp_path):
    out = tmp_path / "eval"
    words = ["evaluate", "--model", distilled / "bundle", "--role", "teacher", "student", "--nfe", "2", "4"]
    status, _, _ = didi(*words, "--num-samples", "16", "--judge", "markov", "--data", "markov", "--out", out)
    assert status == 0
    rows = json.loads((out / "metrics.json").read_text())
    assert [(row["role"], row["nfe"]) for row in rows] == [
        ("data", 0), ("teacher", 2), ("teacher", 4), ("student", 2), ("student", 4),
    ]  # fmt: skip
    for row in rows:
        assert row["gen_ppl_ci"][0] <= row["gen_ppl"] <= row["gen_ppl_ci"][1]
        assert row["num_samples"] == 16
    assert 3 < rows[0]["gen_ppl"] < 5 < rows[1]["gen_ppl"]
    assert rows[1]["nelbo"] == pytest.approx(
        1.367, abs=0.002
    )  # with the masks of this seed; 1.384 (standard error 0.005) with many masks
    assert (out / "report.md").read_text().count("|") > 50
    assert (out / "perplexity.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_language_model_bundle_is_not_judged_by_the_markov_chain(didi, tmp_path):
    status, _, err = didi(
        "evaluate", "--model", "tiny-news", "--judge", "markov", "--nfe", "1", "--num-samples", "1", "--out", tmp_path
    )
    assert status == 2
    assert "judge markov reads the 32 symbols" in err


@pytest.mark.slow
def test_a_bundle_of_the_corpus_exact_has_exact_divergences(didi, make_dit, tmp_path):
    network = make_dit(vocab_size=5, length=4)
    save(Bundle(teacher=network, student=network, provenance={"corpus": "exact"}), tmp_path / "bundle")
    words = ["evaluate", "--model", tmp_path / "bundle", "--role", "student", "teacher", "--nfe", "1", "3"]
    status, out, err = didi(*words, "--num-samples", "8", "--judge", "exact", "--out", tmp_path / "out")
    assert status == 0
    assert "student, ancestral, 1 NFE: perplexity" in err
    assert ", KL " in err
    assert " KL " in out
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [(row["role"], row["nfe"], row["judge"]) for row in rows] == [
        (role, nfe, "exact") for role in ("student", "teacher") for nfe in (1, 3)
    ]
    for row in rows:
        assert row["kl"] > 0
        assert row["reverse_kl"] > 0
        assert 0 < row["total_variation"] < 1
        assert 0 < row["joint_entropy"] <= 4 * math.log(4)
    assert rows[0]["kl"] == pytest.approx(rows[2]["kl"])  # student and teacher are one network
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"{rows[0]['kl']:.4f}" in report
    status, _, err = didi(*words, "--judge", "markov", "--out", tmp_path / "other")
    assert (status, err.count("\n")) == (2, 1)
    assert "was trained on the chain exact: use exact" in err
