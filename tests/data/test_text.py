"""Corpora of text: splits, tokenizers, packing and the cache of packed rows."""

import json
from types import SimpleNamespace

import pytest
import torch

from didi.data import corpora, text
from didi.data.corpora import EOS
from didi.data.text import MASK, load_tokenizer, pack, prepare_text, split_documents, train_tokenizer
from didi.errors import DidiError, UsageError

pytestmark = pytest.mark.usefixtures("cache")

DOCUMENTS = [f"The {animal} number {number} sat on the mat." for number in range(40) for animal in ("cat", "dog")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 300)


def serve(monkeypatch, folder):
    for module in (corpora, text):
        monkeypatch.setattr(module, "fetch", lambda name: folder)


# Splits


def test_splits_are_disjoint_and_complete():
    splits = split_documents(DOCUMENTS, validation=0.1, test=0.2)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (56, 8, 16)
    assert sorted(splits.train + splits.validation + splits.test) == sorted(DOCUMENTS)
    assert splits == split_documents(DOCUMENTS, validation=0.1, test=0.2)
    assert splits.train != split_documents(DOCUMENTS, seed=1, validation=0.1, test=0.2).train


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.0), (0.0, -0.1), (0.5, 0.5), (0.0, 1.0)])
def test_shares_that_leave_no_training_document_are_refused(validation, test):
    with pytest.raises(UsageError, match="leave a document to train on"):
        split_documents(DOCUMENTS, validation=validation, test=test)


# Tokenizers


def test_a_trained_tokenizer_has_the_mask_last_and_is_lossless(tokenizer):
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.token_to_id(EOS) == 0
    assert tokenizer.token_to_id(MASK) == 299
    for sample in (DOCUMENTS[0], " two  spaces\n\tй漢字🙂\x00", "a [MASK] b"):
        ids = pack([sample], tokenizer, 1).flatten().tolist()
        assert ids.pop() == 0
        assert tokenizer.decode(ids, skip_special_tokens=False) == sample


@pytest.mark.parametrize(("size", "message"), [(257, "at least 258"), (5000, r"at most \d+ for so little text")])
def test_an_impossible_vocabulary_is_refused(size, message):
    with pytest.raises(UsageError, match=message):
        train_tokenizer(DOCUMENTS, size)


def test_masks_in_a_prompt_include_the_space_before_them(tokenizer):
    ids = tokenizer.encode("The [MASK] [MASK] sat").ids
    assert [index for index, token in enumerate(ids) if token == 299] == [1, 2]
    assert ids[:1] + ids[3:] == tokenizer.encode("The sat").ids


def test_missing_special_tokens_are_added_to_a_tokenizer_file(tmp_path, tokenizer):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).to_str() == tokenizer.to_str()
    bare = json.loads(tokenizer.to_str())
    bare["added_tokens"] = []
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    loaded = load_tokenizer(str(tmp_path / "bare.json"))
    assert (loaded.token_to_id(EOS), loaded.token_to_id(MASK)) == (0, 299)


def test_gpt2_keeps_its_ids_and_gets_a_mask(monkeypatch, tmp_path):
    vocabulary = {"a": 0, "b": 1, "ab": 2, EOS: 3}
    (tmp_path / "encoder.json").write_text(json.dumps(vocabulary))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n")
    serve(monkeypatch, tmp_path)
    gpt2 = load_tokenizer("gpt2")
    assert (gpt2.encode("ab").ids, gpt2.token_to_id(EOS), gpt2.token_to_id(MASK)) == ([2], 3, 4)


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path, content):
    if content:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(UsageError, match=r"must be a tokenizer.json"):
        load_tokenizer(str(tmp_path / "x.json"))


def test_a_tokenizer_that_the_hub_cannot_provide_is_an_error(monkeypatch):
    def from_pretrained(name):
        raise Exception("offline\nat all")

    monkeypatch.setattr("didi.hub.is_reachable", lambda: True)
    monkeypatch.setattr(text, "Tokenizer", SimpleNamespace(from_pretrained=from_pretrained))
    with pytest.raises(DidiError, match=r"'gtp2' could not be loaded \(offline\); check the name"):
        load_tokenizer("gtp2")


# Packing


def test_packing_is_the_concatenation_with_eos_cut_into_rows(monkeypatch, tokenizer):
    monkeypatch.setattr(text, "DOCUMENTS_PER_CALL", 7)
    stream = [token for document in DOCUMENTS for token in [*tokenizer.encode(document).ids, 0]]
    rows = pack(DOCUMENTS, tokenizer, 16)
    assert rows.dtype == torch.int64
    assert rows.shape == (len(stream) // 16, 16)
    assert rows.flatten().tolist() == stream[: rows.numel()]


def test_special_tokens_in_documents_are_text(tokenizer):
    document = f"a [MASK] b {EOS} c"
    plain = pack([document] * 2, tokenizer, 1).flatten().tolist()
    assert 299 not in plain
    assert plain.count(0) == 2
    assert 299 in tokenizer.encode(document).ids  # the tokenizer of the caller is not changed


def test_too_little_text_gives_no_row(tokenizer):
    assert pack(["a"], tokenizer, 1000).shape == (0, 1000)
    assert pack([], tokenizer, 8).shape == (0, 8)


def test_packing_with_a_tokenizer_without_eos_is_refused():
    with pytest.raises(UsageError, match="this one has none"):
        pack(DOCUMENTS, text.Tokenizer(text.models.BPE()), 8)


# Preparation of a corpus


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus.txt").write_text("\n\n".join(DOCUMENTS))
    return str(tmp_path / "corpus.txt")


def test_a_corpus_is_prepared_once(monkeypatch, corpus, cache):
    first = prepare_text(corpus, length=8, vocab_size=300)
    monkeypatch.setattr(text, "train_tokenizer", None)  # a second training would fail
    cached = prepare_text(corpus, length=8, vocab_size=300)
    splits = split_documents(DOCUMENTS)
    for name in ("train", "validation", "test"):
        rows = getattr(cached, name)
        assert torch.equal(rows, getattr(first, name))
        assert torch.equal(rows, pack(getattr(splits, name), cached.tokenizer, 8))
    assert cached.tokenizer.to_str() == train_tokenizer(splits.train, 300).to_str()
    assert len(list((cache / "text").glob("[!.]*"))) == 1


def test_every_argument_has_its_own_cache_entry(corpus, tmp_path, cache, tokenizer):
    prepare_text(corpus, length=8, vocab_size=300)
    prepare_text(corpus, length=9, vocab_size=300)
    prepare_text(corpus, length=8, vocab_size=299)
    prepare_text(corpus, length=8, vocab_size=300, seed=1)
    by_object = prepare_text(corpus, length=8, tokenizer=tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    by_path = prepare_text(corpus, length=8, tokenizer=str(tmp_path / "tokenizer.json"))
    assert torch.equal(by_object.train, by_path.train)
    assert len(list((cache / "text").glob("[!.]*"))) == 5


def test_a_failed_preparation_leaves_no_cache_entry(corpus, cache, tokenizer):
    with pytest.raises(UsageError, match="drop one of them"):
        prepare_text(corpus, length=8, vocab_size=300, tokenizer=tokenizer)
    with pytest.raises(UsageError, match="fewer than 100000 tokens"):
        prepare_text(corpus, length=100_000, vocab_size=300)
    assert not list((cache / "text").glob("[!.]*"))


def test_gpt2_is_the_default_tokenizer(monkeypatch, corpus, tokenizer):
    monkeypatch.setattr(text, "load_tokenizer", {"gpt2": tokenizer}.__getitem__)
    assert prepare_text(corpus, length=8).tokenizer.to_str() == tokenizer.to_str()


@pytest.mark.network
def test_the_news_corpus_has_the_documented_size():
    data = prepare_text("news", length=128, vocab_size=4096)
    assert data.train.shape == (23_702, 128)
    assert data.train.max() == 4094
    assert load_tokenizer("gpt2").encode("Hello world").ids == [15496, 995]
