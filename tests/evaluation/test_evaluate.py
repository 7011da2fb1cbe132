"""Evaluation of bundles: rows, refused arguments, written files and divergences."""

import json
import math

import pytest
import torch
from tokenizers import Tokenizer, models

from didi.data.markov import MarkovChain
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation import divergences
from didi.evaluation.evaluate import evaluate
from didi.evaluation.joint import JointSettings, joint_divergence
from didi.evaluation.ngrams import ngram_divergence
from didi.evaluation.perplexity import ExactJudge, Scores
from didi.evaluation.plan import plan_rows
from didi.evaluation.report import read_sets
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.nelbo import nats_per_token
from didi.sampling.options import SamplingOptions

LENGTH = 6
JUDGE = ExactJudge(MarkovChain())


@pytest.fixture(scope="module")
def bundle(make_dit):
    torch.manual_seed(0)
    shape = AutoregressiveConfig(vocab_size=33, mask_id=32, length=LENGTH, hidden_size=8, num_blocks=1, num_heads=2)
    teacher = make_dit(vocab_size=33, length=LENGTH)
    return Bundle(teacher=teacher, autoregressive=AutoregressiveLM(shape).eval(), provenance={"corpus": "markov"})


@pytest.mark.slow
def test_each_role_sampler_and_number_of_moves_has_a_row_and_the_baseline_has_one(bundle):
    data = JUDGE.chain.sample(8, LENGTH, torch.Generator().manual_seed(0))
    rows = evaluate(bundle, role=["teacher", "autoregressive"], nfe=[1, 3], num_samples=4, data=data, judge=JUDGE)
    assert [(row.role, row.nfe) for row in rows] == [
        ("data", 0), ("teacher", 1), ("teacher", 3), ("autoregressive", LENGTH),
    ]  # fmt: skip
    exact = nats_per_token(bundle.autoregressive, bundle.process, data, batch_size=8)
    assert rows[3].nelbo == exact
    assert rows[3].network_passes == LENGTH
    assert rows[1].nelbo == rows[2].nelbo != exact


def test_the_default_sampler_and_its_name_give_one_row_together(bundle):
    options = [SamplingOptions(temperature=value) for value in (1.0, 0.5)]
    rows = plan_rows(bundle, "teacher", ["default", "ancestral", "confidence"], [1, 3], options)
    assert [(settings.temperature, settings.sampler, nfe) for _, settings, nfe in rows] == [
        (temperature, sampler, nfe)
        for temperature in (1.0, 0.5) for sampler in ("ancestral", "confidence") for nfe in (1, 3)
    ]  # fmt: skip


class UnusedJudge:
    name = "never"

    def score(self, texts, tokens):
        raise AssertionError("an impossible evaluation must be refused before anything is scored")


def test_what_cannot_be_sampled_is_refused_before_any_work(bundle):
    for arguments, message in (
        ({"sampler": ["ancestral", "guided"]}, "needs a discriminator"),
        ({"role": ["teacher", "student"]}, "has no student"),
        ({"data": torch.full((2, LENGTH), 33)}, "token ids from 0 to 32, .* got 33"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate(bundle, nfe=[1], num_samples=1, judge=UnusedJudge(), **arguments)


class InterruptedJudge:
    name = "failing"

    def __init__(self):
        self.num_calls = 0

    def score(self, texts, tokens):
        self.num_calls += 1
        if self.num_calls == 2:
            raise KeyboardInterrupt
        return Scores(torch.ones(len(texts), dtype=torch.float64), torch.ones(len(texts), dtype=torch.long))


@pytest.mark.slow
def test_rows_measured_before_an_interruption_are_kept(bundle, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(bundle, role="teacher", nfe=[1, 2], num_samples=2, judge=InterruptedJudge(), out=tmp_path)
    assert [row["nfe"] for row in json.loads((tmp_path / "metrics.json").read_text())] == [1]


def test_rows_of_exact_judges_have_divergences_of_pairs_and_triples_and_other_rows_have_none(bundle):
    data = JUDGE.chain.sample(50, LENGTH, torch.Generator().manual_seed(1))
    order = torch.randperm(50, generator=named_generator(0, "data"))  # of the evaluation; triples depend on it
    exact, other = evaluate(bundle, nfe=(), data=data, num_samples=50, judge=[JUDGE, ConstantJudge()])
    pairs, triples = (ngram_divergence(data[order], JUDGE.chain, n) for n in (2, 3))
    assert (exact.pair_kl, exact.pair_reverse_kl) == pytest.approx((pairs.kl, pairs.reverse_kl))
    assert (exact.triple_kl, exact.triple_reverse_kl) == pytest.approx((triples.kl, triples.reverse_kl))
    assert exact.pair_kl_ci == pytest.approx(pairs.kl_ci, nan_ok=True)
    assert exact.pair_reverse_kl_ci == pytest.approx(pairs.reverse_kl_ci, nan_ok=True)
    assert exact.triple_kl_ci == pytest.approx(triples.kl_ci, nan_ok=True)
    assert exact.triple_reverse_kl_ci == pytest.approx(triples.reverse_kl_ci, nan_ok=True)
    assert math.isnan(other.pair_kl)
    assert math.isnan(exact.joint_kl)  # not computed unless requested, since it takes minutes


class ConstantJudge:
    name = "constant"

    def score(self, texts, tokens):
        return Scores(torch.ones(len(texts), dtype=torch.float64), torch.ones(len(texts), dtype=torch.long))


@pytest.fixture
def short_fits(monkeypatch):
    """Joint fits of one epoch."""
    settings = JointSettings(folds=2, epochs=1)
    monkeypatch.setattr(
        divergences, "joint_divergence", lambda tokens, reference: joint_divergence(tokens, reference, settings)
    )
    return settings


@pytest.mark.slow
def test_a_row_has_its_joint_divergence_and_log_ratios_are_written(bundle, short_fits, tmp_path):
    (row,) = evaluate(bundle, role="teacher", nfe=[1], num_samples=16, judge=JUDGE, joint=True, out=tmp_path)
    (written,) = read_sets(tmp_path)
    assert row.joint_reference == "markov"
    assert row.joint_kl == pytest.approx(float(written.log_ratios.mean()))
    assert row.joint_kl_ci[0] <= row.joint_kl <= row.joint_kl_ci[1]
    report = (tmp_path / "report.md").read_text()
    assert "joint KL [95% CI]" in report
    assert "pair KL [95% CI]" in report
    assert "Joint KL: whole sequences against markov, nats a sequence" in report


@pytest.mark.slow
def test_the_reference_of_a_joint_divergence_is_the_named_network_or_else_that_of_the_bundle(bundle, short_fits):
    settings = {"role": "teacher", "nfe": [1], "num_samples": 16, "judge": ConstantJudge()}
    text = Bundle(**{**vars(bundle), "provenance": {}})
    own = evaluate(text, joint=True, **settings)[0]
    named = Bundle(autoregressive=bundle.autoregressive, process=bundle.process, name="baseline")
    other = evaluate(text, joint=named, **settings)[0]
    assert (own.joint_reference, other.joint_reference) == (text.name, "baseline")
    # The exact chain of the corpus is preferred to a network.
    assert evaluate(bundle, joint=True, **settings)[0].joint_reference == "markov"
    assert own.joint_kl == other.joint_kl


def test_a_joint_divergence_without_a_reference_or_with_few_samples_is_refused_before_any_work(bundle, monkeypatch):
    settings = {"role": "teacher", "nfe": [1], "judge": UnusedJudge()}
    named = Bundle(autoregressive=bundle.autoregressive, process=bundle.process, name="baseline")
    alone = Bundle(teacher=bundle.teacher, process=bundle.process, name="alone")
    with pytest.raises(UsageError, match=r"bundle alone has none: train one .* as joint \(--joint-reference\)$"):
        evaluate(alone, num_samples=16, joint=True, **settings)
    with pytest.raises(UsageError, match="takes 8 samples or more; got num_samples 3"):
        evaluate(bundle, num_samples=3, joint=True, **settings)
    vocabulary = Tokenizer(models.WordLevel({"a": 0, "[MASK]": 32}, unk_token="a"))
    other = Bundle(autoregressive=bundle.autoregressive, process=bundle.process, tokenizer=vocabulary, name="other")
    with pytest.raises(UsageError, match="those of bundles other and unnamed differ"):
        evaluate(bundle, num_samples=16, joint=other, **settings)
    monkeypatch.setattr(type(bundle.autoregressive), "length", 2)
    with pytest.raises(UsageError, match=f"has a context of 2 tokens, sequences of unnamed have {LENGTH}"):
        evaluate(bundle, num_samples=16, joint=named, **settings)
