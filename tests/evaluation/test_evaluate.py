import json

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.errors import UsageError
from didi.evaluation.evaluate import evaluate
from didi.evaluation.perplexity import ExactJudge, Scores
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.nelbo import nats_per_token

LENGTH = 6
JUDGE = ExactJudge(MarkovChain())


@pytest.fixture(scope="module")
def bundle(make_dit):
    torch.manual_seed(0)
    shape = AutoregressiveConfig(vocab_size=33, mask_id=32, length=LENGTH, hidden_size=8, num_blocks=1, num_heads=2)
    teacher = make_dit(vocab_size=33, length=LENGTH)
    return Bundle(teacher=teacher, autoregressive=AutoregressiveLM(shape).eval(), provenance={"corpus": "markov"})


def test_each_role_sampler_and_number_of_moves_has_a_row_and_the_twin_has_one(bundle):
    data = JUDGE.chain.sample(8, LENGTH, torch.Generator().manual_seed(0))
    rows = evaluate(bundle, role=["teacher", "autoregressive"], nfe=[1, 3], num_samples=4, data=data, judge=JUDGE)
    assert [(row.role, row.nfe) for row in rows] == [
        ("data", 0), ("teacher", 1), ("teacher", 3), ("autoregressive", LENGTH),
    ]  # fmt: skip
    exact = nats_per_token(bundle.autoregressive, bundle.process, data, batch_size=8)
    assert rows[3].nelbo == exact
    assert rows[3].student_passes == LENGTH
    assert rows[1].nelbo == rows[2].nelbo != exact


class NeverAsked:
    name = "never"

    def score(self, texts, tokens):
        raise AssertionError("nothing is to be judged before everything is known to be possible")


def test_what_cannot_be_sampled_is_refused_before_any_work(bundle):
    for wrong in (
        {"sampler": ["ancestral", "guided"]},
        {"role": ["teacher", "student"]},
        {"data": torch.full((2, LENGTH), 33)},
    ):
        with pytest.raises(UsageError):
            evaluate(bundle, nfe=[1], num_samples=1, judge=NeverAsked(), **wrong)


class Failing:
    name = "failing"

    def __init__(self):
        self.num_asked = 0

    def score(self, texts, tokens):
        self.num_asked += 1
        if self.num_asked == 2:
            raise KeyboardInterrupt
        return Scores(torch.ones(len(texts), dtype=torch.float64), torch.ones(len(texts), dtype=torch.long))


def test_rows_that_were_measured_outlive_an_interruption(bundle, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(bundle, role="teacher", nfe=[1, 2], num_samples=2, judge=Failing(), out=tmp_path)
    assert [row["nfe"] for row in json.loads((tmp_path / "metrics.json").read_text())] == [1]
