"""MAUVE of the rows of an evaluation, its embeddings, and the real package."""

import sys
from types import SimpleNamespace

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.errors import DidiError, UsageError
from didi.evaluation.evaluate import evaluate
from didi.evaluation.mauve import Embedding, load_embedding, mauve
from didi.evaluation.perplexity import ExactJudge
from didi.models.bundle import Bundle


@pytest.fixture
def overlap(monkeypatch):
    """Replaces the package by a function that returns the share of the samples that are in the reference."""

    def compute_mauve(*, p_features, q_features, verbose, seed):
        assert not verbose
        known = {tuple(row) for row in q_features.tolist()}
        return SimpleNamespace(mauve=sum(tuple(row) in known for row in p_features.tolist()) / len(p_features))

    monkeypatch.setitem(sys.modules, "mauve", SimpleNamespace(compute_mauve=compute_mauve))


def embed(texts):
    return torch.tensor([[float(sum(i * ord(c) for i, c in enumerate(text)))] for text in texts])


@pytest.mark.slow
def test_every_row_is_compared_with_the_half_of_the_data_that_is_not_scored(overlap, make_dit):
    teacher = make_dit(vocab_size=33, length=6)
    chain = MarkovChain()
    data = chain.sample(8, 6, torch.Generator().manual_seed(0))
    judge = ExactJudge(chain)
    bundle = Bundle(teacher=teacher, provenance={"corpus": "markov"})
    rows = evaluate(
        bundle,
        nfe=[2],
        num_samples=4,
        data=data,
        anchors={f"copies of {row}": data[row].expand(4, -1) for row in range(8)},
        judge=judge,
        embed=Embedding("characters", embed),
    )
    (real, *anchors, sampled) = rows
    assert (real.role, sampled.role) == ("data", "teacher")
    assert sampled.note == "MAUVE in the space of characters"
    assert real.mauve == 0  # no row of the data is compared with itself
    assert sorted(row.mauve for row in anchors) == [0] * 4 + [1] * 4  # half of the data is the reference
    assert sampled.mauve == 0
    for few in (data[:7], None):
        with pytest.raises(UsageError, match="4 samples need 8"):
            evaluate(bundle, nfe=[2], num_samples=4, data=few, judge=judge, embed=Embedding("characters", embed))


def test_a_missing_mauve_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(DidiError, match=r"pip install '.\[mauve\]"):
        mauve(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(DidiError, match=r"pip install '.\[mauve\]"):
        load_embedding()


@pytest.mark.slow
@pytest.mark.network
def test_fiction_is_further_from_news_than_other_news_are():
    from didi.data.corpora import brown_texts
    from didi.data.text import load_tokenizer, pack

    tokenizer, embed_texts = load_tokenizer("gpt2"), load_embedding()

    def features(files):
        rows = pack(brown_texts(files), tokenizer, 64)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:400]]
        return embed_texts(tokenizer.decode_batch(rows.tolist()))

    news, fiction = features("ca[0-9][0-9]"), features("ck[0-9][0-9]")
    assert mauve(news[:200], news[200:]) > 0.8
    assert mauve(fiction[:200], news[200:]) < 0.4


@pytest.mark.slow
def test_an_unknown_embedding_is_refused_in_one_line():
    pytest.importorskip("transformers")
    pytest.importorskip("mauve")
    with pytest.raises((UsageError, DidiError)) as caught:
        load_embedding("/no/such/folder")
    assert "embedding '/no/such/folder'" in str(caught.value)
    assert "\n" not in str(caught.value)
