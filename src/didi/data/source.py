"""Sources of token sequences for a run: a packed text corpus, a Markov chain, or proteins."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from didi.data.blocks import BlockLayout, block_layout_of
from didi.data.markov import CHAINS, MARKOV
from didi.data.protein import is_protein_corpus
from didi.data.protein_source import open_proteins
from didi.data.text import MASK, BatchOrder, TextData, prepare_text
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.models.bundle import Bundle

MARKOV_HELD_OUT_ROWS = 4096


@runtime_checkable
class Source(Protocol):
    """Training batches as a function of the step, and fixed validation and test sets.

    Attributes:
        vocab_size: number of symbols, [MASK] included.
        mask_id: index of [MASK].
        validation: rows for choices during development.
        test: rows for reported results.
        tokenizer: tokenizer of the rows.
        mean_length: mean number of free positions of a training row.
        has_lengths: whether rows have padding or given symbols, see ``canvas``.
    """

    vocab_size: int
    mask_id: int
    validation: Int[Tensor, "n l"]
    test: Int[Tensor, "m l"]
    tokenizer: Tokenizer
    mean_length: float
    has_lengths: bool

    def batch(self, step: int, batch_size: int) -> Int[Tensor, "b l"]:
        """Training sequences of a step; they depend on the arguments only."""
        ...

    def canvas(self, rows: Int[Tensor, "b l"]) -> Canvas:
        """The canvas of rows of ``batch``, ``validation`` or ``test``: their real and their free positions."""
        ...


class OneLength:
    """Base class of sources whose rows have one length and no given positions."""

    has_lengths = False

    def canvas(self, rows: Int[Tensor, "b l"]) -> Canvas:
        """See ``Source.canvas``: all positions are free."""
        return Canvas.free(rows)


class MarkovSource(OneLength):
    """New sequences of a Markov chain at every step; symbols are written s0, s1, ...

    Args:
        length: number of tokens in a sequence.
        seed: seed of the batches; validation and test sets do not depend on it.
        name: name of the chain in ``markov.CHAINS``.
    """

    def __init__(self, length: int, seed: int, name: str = MARKOV) -> None:
        self.chain = CHAINS[name]()
        self.vocab_size = self.chain.num_symbols + 1
        self.mask_id = self.chain.num_symbols
        self._length, self._seed, self._name = length, seed, name
        self.mean_length = float(length)
        self.validation, self.test = (
            self.chain.sample(MARKOV_HELD_OUT_ROWS, length, named_generator(name, split))
            for split in ("validation", "test")
        )
        symbols = {f"s{number}": number for number in range(self.chain.num_symbols)} | {MASK: self.mask_id}
        self.tokenizer = Tokenizer(models.WordLevel(symbols, unk_token=""))  # no unknown token: other words are errors
        self.tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    def batch(self, step: int, batch_size: int) -> Int[Tensor, "b l"]:
        """See ``Source.batch``."""
        return self.chain.sample(batch_size, self._length, named_generator(self._seed, self._name, step))


class TextSource(OneLength):
    """Rows of a packed corpus, each once per epoch, in an order that depends on the seed."""

    def __init__(self, data: TextData, seed: int) -> None:
        self.tokenizer = data.tokenizer
        self.vocab_size = data.tokenizer.get_vocab_size()
        mask_id = data.tokenizer.token_to_id(MASK)
        # Tokenizers without [MASK] belong to bundles whose networks have none; they pack corpora for evaluations.
        self.mask_id = self.vocab_size if mask_id is None else mask_id
        self.validation, self.test = data.validation, data.test
        self._train, self._seed = data.train, seed
        self.mean_length = float(data.train.shape[1])
        self._orders: dict[int, BatchOrder] = {}  # by batch size; each keeps the permutation of its latest epoch

    def batch(self, step: int, batch_size: int) -> Int[Tensor, "b l"]:
        """See ``Source.batch``."""
        if batch_size not in self._orders:
            self._orders[batch_size] = BatchOrder(len(self._train), batch_size, self._seed)
        return self._train[self._orders[batch_size].rows(step)]


class RandomSource(OneLength):
    """Random tokens, for uses where only their number matters."""

    def __init__(self, length: int, vocab_size: int) -> None:
        self.vocab_size, self.mask_id, self._length = vocab_size, vocab_size - 1, length
        self.mean_length = float(length)
        self.validation = self.test = torch.zeros(1, length, dtype=torch.long)
        self.tokenizer = Tokenizer(models.WordLevel({MASK: self.mask_id}, unk_token=""))

    def batch(self, step: int, batch_size: int) -> Int[Tensor, "b l"]:
        """See ``Source.batch``."""
        generator = named_generator(0, "tokens", step)
        return torch.randint(self.vocab_size - 1, (batch_size, self._length), generator=generator)


def open_source(
    corpus: str,
    *,
    length: int,
    vocab_size: int | None = None,
    tokenizer: str | Tokenizer | None = None,
    seed: int = 0,
    block_layout: BlockLayout = "stream",
) -> Source:
    """The source of a corpus.

    Args:
        corpus: a name in ``markov.CHAINS``, proteins (``protein.is_protein_corpus``), or any corpus of
            ``corpora.load_documents``.
        length: number of tokens in a sequence.
        vocab_size: size of a tokenizer to train on the corpus, mask and end-of-text included.
        tokenizer: an existing tokenizer or its name, instead of ``vocab_size``.
        seed: seed of the order of the batches (of the draws, for a chain); splits do not depend on it.
        block_layout: layout of the rows of a text corpus.

    Raises:
        UsageError: the corpus is unknown, or other arguments do not fit it.
        DidiError: the corpus cannot be fetched.
    """
    if corpus in CHAINS:
        if block_layout != "stream":
            raise UsageError(f"rows of {corpus} have block_layout stream; got {block_layout}; set it to stream")
        return MarkovSource(length, seed, corpus)
    if is_protein_corpus(corpus):
        if block_layout != "stream" or vocab_size is not None or isinstance(tokenizer, str):
            raise UsageError(
                f"proteins have block_layout stream and a vocabulary of their own; got {block_layout}, vocab_size "
                f"{vocab_size} and tokenizer {tokenizer if isinstance(tokenizer, str) else None}: leave these out"
            )
        return open_proteins(corpus, length=length, tokenizer=tokenizer, seed=seed)
    data = prepare_text(corpus, length=length, vocab_size=vocab_size, tokenizer=tokenizer, block_layout=block_layout)
    return TextSource(data, seed)


def source_for(bundle: Bundle, corpus: str) -> Source:
    """The source of a text corpus with the tokenizer, the length and the block layout of a bundle.

    Raises:
        UsageError: as in ``open_source``; or the corpus is of proteins, for which ``evaluation.protein`` exists.
        DidiError: the corpus cannot be fetched.
    """
    if is_protein_corpus(corpus):
        raise UsageError(
            f"the measures of text need sequences of one length; got the proteins of {corpus}: use "
            "didi.evaluation.protein (docs/proteins.md)"
        )
    return open_source(
        corpus,
        length=bundle.network().length,
        tokenizer=bundle.tokenizer,
        block_layout=block_layout_of(bundle.provenance),
    )
