"""Anchors: sets of obviously bad texts, scored next to a model's samples to show where a metric is misleading."""

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor

from didi.data.source import Source
from didi.diffusion.noise import named_generator

ANCHORS = ("shuffled words", "repetition", "trigram model")
CORPUS_TEXTS = ("data", "shuffled words")  # texts of the corpus; published reports do not quote them (licences)
NGRAM_ORDER = 3
NGRAM_ROWS = 16_384  # training rows of the n-gram model: some two million tokens


def anchor_sets(source: Source, num_rows: int, *, seed: int = 0) -> dict[str, Int[Tensor, "n l"]]:
    """Anchors of a corpus by name: test rows with shuffled words, one repeated token, samples of a trigram model.

    Args:
        source: the corpus; the trigram model is counted on its training rows.
        num_rows: number of sequences of each anchor, at most the rows of the test split.
        seed: random seed of the choice of rows, the shuffling and the trigram samples.
    """
    order = torch.randperm(len(source.test), generator=named_generator(seed, "data"))
    rows = source.test[order[:num_rows]]
    batch = 64
    train = torch.cat([source.batch(step, batch) for step in range(NGRAM_ROWS // batch)])
    words = starts_of_words(source.tokenizer)
    sets = (
        shuffled_words(rows, words, named_generator(seed, "shuffled words")),
        torch.full_like(rows, int(rows.flatten().mode().values)),
        # "babble" is part of the seed of the published rows.
        ngram_samples(train, len(rows), NGRAM_ORDER, named_generator(seed, "babble")),
    )
    return dict(zip(ANCHORS, sets, strict=True))


def starts_of_words(tokenizer: Tokenizer) -> Bool[Tensor, " v"]:
    """Which tokens begin a word: those that begin with a space, or all where no token does."""
    texts = [tokenizer.id_to_token(number) or "" for number in range(tokenizer.get_vocab_size())]
    starts = torch.tensor([text.startswith(("Ġ", "▁", " ")) for text in texts])
    return starts if starts.any() else torch.ones_like(starts)


def shuffled_words(
    rows: Int[Tensor, "n l"], starts: Bool[Tensor, " v"], generator: torch.Generator
) -> Int[Tensor, "n l"]:
    """Rows with their words in random order; the tokens of a word stay together.

    Args:
        rows: token sequences.
        starts: which tokens begin a word.
        generator: random generator of the order.
    """
    word = starts[rows].long().cumsum(1)
    keys = torch.rand(len(rows), rows.shape[1] + 1, generator=generator)
    return rows.gather(1, keys.gather(1, word).argsort(dim=1, stable=True))


def ngram_samples(
    train: Int[Tensor, "m k"], num_rows: int, order: int, generator: torch.Generator
) -> Int[Tensor, "n k"]:
    """Samples of the n-gram model of ``train``; a context without continuation in ``train`` is shortened (backoff).

    Args:
        train: token sequences; n-grams do not cross sequences.
        num_rows: number of sequences to draw.
        order: n; each token depends on the previous ``order - 1`` tokens.
        generator: random generator of the draws.
    """
    num_symbols, length = int(train.max()) + 1, train.shape[1]
    tables = []
    for size in range(1, order + 1):
        grams = train.unfold(1, size, 1).reshape(-1, size)
        contexts = _number(grams[:, :-1], num_symbols)
        by_context = contexts.argsort(stable=True)
        tables.append((contexts[by_context], grams[by_context, -1]))
    rows = torch.empty(num_rows, length, dtype=torch.long)
    for position in range(length):
        uniforms = torch.rand(num_rows, dtype=torch.float64, generator=generator)
        # From the empty context to the longest; a longer context replaces the draw where it occurs in ``train``.
        for size, (contexts, next_tokens) in enumerate(tables[: position + 1]):
            context = _number(rows[:, position - size : position], num_symbols)
            first, end = torch.searchsorted(contexts, context), torch.searchsorted(contexts, context, right=True)
            drawn = next_tokens[(first + (uniforms * (end - first)).long()).clamp(max=len(next_tokens) - 1)]
            rows[:, position] = drawn if size == 0 else torch.where(end > first, drawn, rows[:, position])
    return rows


def _number(grams: Int[Tensor, "m k"], num_symbols: int) -> Int[Tensor, " m"]:
    """A number for each n-gram; 0 for the empty n-gram."""
    number = torch.zeros(len(grams), dtype=torch.long)
    for column in grams.unbind(1):
        number = number * num_symbols + column
    return number
