"""Layouts of rows of text; distillation and evaluation use that of the teacher."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from didi.apps.train import distillation_source, pretraining_source
from didi.data.blocks import block_layout_of, cut
from didi.data.source import open_source, source_for
from didi.data.text import EOS, pack, prepare_text, train_tokenizer
from didi.errors import UsageError
from didi.evaluation.zero_shot import rows_of
from didi.methods.didi_settings import DistillConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DataConfig
from didi.models.bundle import Bundle

pytestmark = pytest.mark.usefixtures("cache")

DOCUMENTS = [f"number {number} of a few short documents" for number in range(80)]
LENGTH = 8


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 280)


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus.txt").write_text("\n\n".join(DOCUMENTS))
    return str(tmp_path / "corpus.txt")


@pytest.fixture
def bundle(make_dit, tokenizer):
    """A bundle like that of ``didi convert`` for a public checkpoint."""
    teacher = make_dit(vocab_size=280, length=LENGTH)
    return Bundle(teacher=teacher, tokenizer=tokenizer, provenance={"block_layout": "bos-eos"})


def has_ends(rows, eos_id):
    return bool((rows[:, [0, -1]] == eos_id).all())


@pytest.mark.parametrize(("layout", "num_rows"), [("stream", 4), ("bos-eos", 6)])
def test_rows_are_the_stream_in_order(layout, num_rows):
    stream = np.arange(1, 20, dtype=np.int32)
    rows = cut(stream, 4 if layout == "stream" else 5, 0, layout)
    assert rows.dtype == torch.int64
    inner = rows if layout == "stream" else rows[:, 1:-1]
    assert inner.flatten().tolist() == list(range(1, inner.numel() + 1))
    assert len(rows) == num_rows
    assert has_ends(rows, 0) == (layout == "bos-eos")


@pytest.mark.parametrize(("layout", "least"), [("stream", 1), ("bos-eos", 3)])
def test_a_row_has_at_least_one_token(tokenizer, layout, least):
    assert pack(DOCUMENTS, tokenizer, least, layout).shape[1] == least
    with pytest.raises(UsageError, match=f"has {least} tokens or more; got length {least - 1}"):
        pack(DOCUMENTS, tokenizer, least - 1, layout)


def test_an_unknown_recorded_layout_is_refused():
    assert block_layout_of({}) == "stream"
    assert block_layout_of({"block_layout": "bos-eos"}) == "bos-eos"
    with pytest.raises(UsageError, match="block_layout is one of stream, bos-eos; got 'bos'"):
        block_layout_of({"block_layout": "bos"})


def test_layouts_of_a_corpus_have_separate_caches(corpus, tokenizer):
    stream, framed = (
        prepare_text(corpus, length=LENGTH, tokenizer=tokenizer, block_layout=layout)
        for layout in ("stream", "bos-eos")
    )
    eos_id = tokenizer.token_to_id(EOS)
    for split in ("train", "validation", "test"):
        assert not has_ends(getattr(stream, split), eos_id)
        assert has_ends(getattr(framed, split), eos_id)
    assert torch.equal(prepare_text(corpus, length=LENGTH, tokenizer=tokenizer).train, stream.train)


def test_pretraining_uses_the_layout_of_its_settings(corpus, tokenizer):
    data = DataConfig(corpus=corpus, length=LENGTH, vocab_size=280)
    for layout in (None, "stream", "bos-eos"):
        source = pretraining_source(PretrainConfig(data=replace(data, block_layout=layout)))
        assert has_ends(source.batch(0, 4), source.tokenizer.token_to_id(EOS)) == (layout == "bos-eos")


@pytest.mark.parametrize(
    ("setting", "recorded", "is_framed"),
    [(None, "bos-eos", True), ("stream", "bos-eos", False), (None, None, False), ("bos-eos", None, True)],
)
def test_distillation_uses_the_layout_of_its_teacher_unless_one_is_set(corpus, bundle, setting, recorded, is_framed):
    config = DistillConfig(data=DataConfig(corpus=corpus, length=LENGTH, block_layout=setting))
    teacher = replace(bundle, provenance={"block_layout": recorded} if recorded else {})
    source = distillation_source(config, teacher)
    eos_id = source.tokenizer.token_to_id(EOS)
    for rows in (source.batch(0, 4), source.validation, source.test):
        assert has_ends(rows, eos_id) == is_framed


def test_a_bundle_is_scored_on_rows_with_the_layout_of_its_training(corpus, bundle):
    eos_id = bundle.tokenizer.token_to_id(EOS)
    with_corpus = replace(bundle, provenance=bundle.provenance | {"corpus": corpus})
    assert has_ends(source_for(bundle, corpus).test, eos_id)
    assert has_ends(rows_of(with_corpus, corpus), eos_id)
    assert has_ends(rows_of(bundle, corpus), eos_id)
    assert not has_ends(rows_of(replace(bundle, provenance={}), corpus), eos_id)


def test_a_markov_chain_has_no_begin_and_end_tokens():
    with pytest.raises(UsageError, match="rows of markov have block_layout stream; got bos-eos; set it to stream"):
        open_source("markov", length=LENGTH, block_layout="bos-eos")


def test_older_settings_without_a_layout_are_upgraded():
    old = {"data": {"corpus": "news", "length": 8, "vocab_size": None, "tokenizer": None}}
    for kind in (PretrainConfig, DistillConfig):
        assert kind.upgraded(old)["data"] == old["data"] | {"block_layout": None}
        assert kind.upgraded({"data": {"length": 8}}) == {"data": {"length": 8}}
