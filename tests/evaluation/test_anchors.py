"""Anchor sets: shuffled words, a repeated token, samples of an n-gram model."""

from collections import Counter
from itertools import permutations

import pytest
import torch

from didi.data.source import MarkovSource
from didi.evaluation.anchors import anchor_sets, ngram_samples, shuffled_words, starts_of_words


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_words_are_shuffled_whole():
    starts = torch.tensor([True, False, True, True])
    row = torch.tensor([[1, 0, 1, 1, 2, 3, 1]])  # the first token continues a word, and is shuffled as a word
    words = ["1", "011", "2", "31"]
    seen = {"".join(map(str, shuffled_words(row, starts, generator(seed))[0].tolist())) for seed in range(300)}
    assert seen == {"".join(order) for order in permutations(words)}


def test_a_tokenizer_without_spaces_has_a_word_in_each_token():
    assert starts_of_words(MarkovSource(8, 0).tokenizer).all()


def test_ngram_samples_follow_the_counts_of_the_corpus():
    train = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1]] * 3 + [[0, 1, 3, 3, 3, 3, 3, 3]])
    rows = ngram_samples(train, 4000, 3, generator())
    grams = Counter(tuple(gram) for row in rows.tolist() for gram in zip(row, row[1:], row[2:], strict=False))
    seen = {tuple(gram) for row in train.tolist() for gram in zip(row, row[1:], row[2:], strict=False)}
    assert set(grams) <= seen
    # After (0, 1) the counts are 6 to 1; at the end of a row nothing follows.
    assert grams[0, 1, 2] / (grams[0, 1, 2] + grams[0, 1, 3]) == pytest.approx(6 / 7, abs=0.02)
    first = torch.bincount(rows[:, 0], minlength=4) / 4000
    assert first.tolist() == pytest.approx((torch.bincount(train.flatten(), minlength=4) / 32).tolist(), abs=0.03)


def test_an_unseen_context_is_shortened():
    train = torch.tensor([[0, 1, 2]])  # nothing follows 2, and of all pairs only (0, 1) has a continuation
    rows = {tuple(row) for row in ngram_samples(train, 500, 3, generator()).tolist()}
    after_2 = {(first, 2, symbol) for first in (1, 2) for symbol in range(3)}
    assert rows == {(0, 1, 2), (2, 0, 1), (2, 1, 2)} | after_2


@pytest.mark.slow
def test_anchors_have_their_named_properties_and_depend_on_the_seed_only():
    source = MarkovSource(16, 0)
    sets = anchor_sets(source, 200)
    assert list(sets) == ["shuffled words", "repetition", "trigram model"]
    assert all(rows.shape == (200, 16) for rows in sets.values())
    per_token = {name: -float(source.chain.log_likelihood(rows).mean()) / 16 for name, rows in sets.items()}
    real = -float(source.chain.log_likelihood(source.test).mean()) / 16
    assert real < per_token["trigram model"] < per_token["shuffled words"]
    assert len(sets["repetition"].unique()) == 1
    again = anchor_sets(source, 200)
    assert all(torch.equal(sets[name], again[name]) for name in sets)
    assert not torch.equal(sets["trigram model"], anchor_sets(source, 200, seed=1)["trigram model"])
