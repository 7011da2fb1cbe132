"""Rows of zero-shot likelihoods, their records and their table."""

import math
from dataclasses import replace

import pytest

from didi.data.text import train_tokenizer
from didi.errors import UsageError
from didi.evaluation import zero_shot
from didi.evaluation.likelihood import Likelihood
from didi.evaluation.zero_shot import LikelihoodRow, likelihood_table, rows_of, score_corpus
from didi.models.bundle import Bundle


def make_row(data="news", role="teacher", *, is_exact=False):
    nats = math.log(100)
    interval = (nats - 0.1, nats + 0.1)
    likelihood = Likelihood(nats, interval, 0.0 if is_exact else 0.02, 10, 1280, 1 if is_exact else 16, is_exact)
    return LikelihoodRow(data, role, 6400, likelihood)


def test_the_table_marks_upper_bounds_and_describes_their_estimation():
    rows = [
        make_row(data, role, is_exact=role == "autoregressive")
        for data in ("news", "wiki")
        for role in ("teacher", "autoregressive")
    ]
    lines = likelihood_table(rows, model="mine", machine="a machine").splitlines()
    bits = math.log2(100) / 5
    assert lines[2] == f"| news | ≤ 100.0 [90.5, 110.5] | ≤ {bits:.3f} | 100.0 [90.5, 110.5] | {bits:.3f} |"
    assert lines[3].startswith("| wiki | ≤ 100.0")
    assert "mine; blocks of 128 tokens; at most 10 blocks of a corpus; 16 random masks per sequence" in lines[5]
    assert "(standard error at most 0.020 nats per token)" in lines[5]
    exact = likelihood_table([rows[1]], model="mine", machine="a machine")
    assert "masks" not in exact


def test_records_have_derived_values():
    record = make_row().record()
    assert record["perplexity"] == pytest.approx(100)
    assert record["bits_per_character"] == pytest.approx(math.log2(100) / 5)
    assert (record["num_draws"], record["is_exact"], record["noise"]) == (16, False, 0.02)


def test_rows_are_those_of_the_test_split_of_a_bundles_own_corpus_and_all_of_another(make_dit, tmp_path):
    documents = [f"number {i} of a few short documents" for i in range(60)]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(documents))
    tokenizer = train_tokenizer(documents, 280)
    teacher = make_dit(vocab_size=280, length=8)
    other, own = (
        Bundle(teacher=teacher, tokenizer=tokenizer, provenance={"corpus": name}) for name in ("news", str(corpus))
    )
    assert len(rows_of(own, str(corpus))) < len(rows_of(other, str(corpus))) / 10
    with pytest.raises(UsageError, match="mine has no tokenizer"):
        rows_of(Bundle(teacher=teacher, name="mine"), str(corpus))
    corpus.write_text("short")
    with pytest.raises(UsageError, match="fills a block of 8 tokens or more"):
        rows_of(other, str(corpus))


def test_a_row_records_how_its_corpus_was_prepared(make_dit, monkeypatch):
    documents = [f"number {i} of a few short documents" for i in range(60)]
    tokenizer = train_tokenizer(documents, 280)
    bundle = Bundle(teacher=make_dit(vocab_size=280, length=8), tokenizer=tokenizer)
    framed = Bundle(**{**vars(bundle), "provenance": {"block_layout": "bos-eos"}})
    monkeypatch.setattr(zero_shot, "zero_shot_documents", lambda name: documents)
    rows = [
        score_corpus(each, data, "teacher", num_sequences=2, num_draws=2)
        for each, data in ((bundle, "ptb"), (bundle, "ag-news"), (framed, "ptb"))
    ]
    assert [(row.is_detokenized, row.block_layout) for row in rows] == [
        (True, "stream"),
        (False, "stream"),
        (True, "bos-eos"),
    ]
    for row in rows:
        assert LikelihoodRow.from_record(row.record()) == row
    footnote = likelihood_table(rows[:2], model="mine", machine="a machine").splitlines()[-1]
    assert "Detokenised by the rules of MDLM: ptb. Texts are wrapped into blocks, layout stream." in footnote
    assert "layout bos-eos" in likelihood_table(rows[2:], model="mine", machine="a machine")
    assert "Detokenised" not in likelihood_table(rows[1:2], model="mine", machine="a machine")


def test_records_of_older_versions_are_read():
    record = make_row().record()
    del record["is_detokenized"], record["block_layout"]
    assert LikelihoodRow.from_record(record) == make_row()


def test_differing_lengths_and_layouts_of_networks_are_in_the_footnote():
    teacher, baseline = (replace(make_row(role=role), block_layout="bos-eos") for role in ("teacher", "autoregressive"))
    same_settings = likelihood_table([teacher, baseline], model="mine", machine="a machine")
    assert "blocks of 128 tokens;" in same_settings
    assert "layout bos-eos." in same_settings
    longer = replace(baseline, block_layout="stream", likelihood=replace(baseline.likelihood, num_tokens=10_240))
    table = likelihood_table([teacher, longer], model="mine", machine="a machine")
    assert "blocks of 128 (autoregressive: 1024) tokens;" in table
    assert "layout bos-eos (autoregressive: stream)." in table
