"""Entropies, distinct n-grams, repetition and self-BLEU of token sequences."""

import math
from collections import Counter

import pytest
import torch

from didi.evaluation.diversity import (
    bigram_entropy,
    corpus_entropy,
    distinct_n,
    self_bleu,
    sequence_repetition,
    token_entropy,
)


def entropy_of(items):
    counts = Counter(items)
    total = sum(counts.values())
    return -sum(c / total * math.log(c / total) for c in counts.values())


def ngrams(row, n):
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


@pytest.fixture(params=[5, 50257], ids=["few symbols", "gpt2 vocabulary"])
def tokens(request):
    return torch.randint(request.param, (7, 33), generator=torch.Generator().manual_seed(1))


def test_entropies_equal_a_plain_count(tokens):
    rows = tokens.tolist()
    assert token_entropy(tokens).tolist() == pytest.approx([entropy_of(row) for row in rows])
    assert corpus_entropy(tokens) == pytest.approx(entropy_of([token for row in rows for token in row]))
    assert bigram_entropy(tokens) == pytest.approx(entropy_of([pair for row in rows for pair in ngrams(row, 2)]))


@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_distinct_n_equals_a_set_of_tuples_without_overflow(tokens, n):
    grams = [gram for row in tokens.tolist() for gram in ngrams(row, n)]
    assert distinct_n(tokens, n) == pytest.approx(len(set(grams)) / len(grams))


def test_entropy_is_zero_for_one_token_and_log_length_for_all_distinct():
    tokens = torch.stack([torch.zeros(8, dtype=torch.long), torch.arange(8)])
    assert token_entropy(tokens).tolist() == pytest.approx([0, math.log(8)], abs=1e-12)


def test_copies_of_a_diverse_sequence_lower_the_measures_of_the_corpus_only():
    copies = torch.arange(16).repeat(4, 1)
    different = torch.arange(64).view(4, 16)
    assert torch.equal(token_entropy(copies), token_entropy(different))
    assert [corpus_entropy(copies), corpus_entropy(different)] == pytest.approx([math.log(16), math.log(64)])
    assert distinct_n(copies) == 0.25
    assert distinct_n(different) == 1.0


def test_pairs_do_not_cross_sequences():
    assert bigram_entropy(torch.tensor([[0, 1], [0, 1]])) == pytest.approx(0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_narrow_integer_types_do_not_overflow(dtype):
    tokens = torch.randint(torch.iinfo(dtype).max, (50, 60), generator=torch.Generator().manual_seed(2))
    assert distinct_n(tokens.to(dtype), 2) == distinct_n(tokens, 2)
    assert torch.equal(token_entropy(tokens.to(dtype)), token_entropy(tokens))


@pytest.mark.parametrize("n", [0, 4])
def test_an_n_outside_1_to_the_length_is_refused(n):
    with pytest.raises(ValueError, match=f"got {n}"):
        distinct_n(torch.zeros(2, 3, dtype=torch.long), n)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
@pytest.mark.parametrize("measure", [token_entropy, corpus_entropy, distinct_n])
def test_an_empty_set_is_refused(measure, shape):
    with pytest.raises(ValueError, match="at least one token"):
        measure(torch.zeros(shape, dtype=torch.long))


def test_sequence_repetition_equals_a_plain_count(tokens):
    rows = (tokens % 3).tolist()
    expected = [1 - len(set(ngrams(row, 4))) / len(ngrams(row, 4)) for row in rows]
    assert sequence_repetition(tokens % 3).tolist() == pytest.approx(expected)
    assert sequence_repetition(torch.full((1, 9), 7)).item() == pytest.approx(5 / 6)


def test_self_bleu_is_that_of_nltk():
    rows = [[3, 3, 0, 2, 3, 3, 2, 3, 2], [1, 1, 2, 1, 0, 2, 1, 2, 0], [0, 2, 3, 0, 2, 3, 2, 1, 3]]
    rows += [[3, 2, 0, 0, 0, 3, 0, 3, 2], [1, 2, 0, 1, 1, 1, 1, 3, 0]]
    # nltk 3.9.2: sentence_bleu of each against the other four, SmoothingFunction().method1
    expected = [0.4518010018049224, 0.19640732545025652, 0.5, 0.09809436521275709, 0.19070828081828378]
    assert self_bleu(torch.tensor(rows)) == pytest.approx(sum(expected) / 5)


def test_self_bleu_is_one_for_copies_and_needs_two():
    assert self_bleu(torch.arange(9).repeat(3, 1)) == pytest.approx(1)
    with pytest.raises(ValueError, match="two sequences or more; got 1"):
        self_bleu(torch.arange(9).unsqueeze(0))
