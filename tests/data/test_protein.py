"""Proteins: tokens, corpora, cleaning, splits by cluster, batches."""

import itertools
import random
from collections import Counter

import pytest
import torch

from didi.data import mmseqs, protein
from didi.data.fasta import fasta_record
from didi.data.protein import (
    is_protein_corpus,
    is_protein_tokenizer,
    load_proteins,
    prepare_proteins,
    protein_tokenizer,
    standard_proteins,
)
from didi.data.protein_batches import LengthBuckets, canvas_of_rows, protein_canvas
from didi.data.protein_split import split_by_cluster
from didi.data.source import MarkovSource, Source, open_source
from didi.errors import DidiError, UsageError
from didi.models.proteins import ALPHABET, RESIDUES

needs_mmseqs = pytest.mark.skipif(not mmseqs.is_available(), reason="the program mmseqs is not installed")


def random_proteins(num, length, seed=0):
    source = random.Random(seed)
    return ["".join(source.choices(RESIDUES, k=length)) for _ in range(num)]


def mutated(sequence, num, seed):
    source, letters = random.Random(seed), list(sequence)
    for place in source.sample(range(len(letters)), num):
        letters[place] = source.choice(RESIDUES)
    return "".join(letters)


def test_tokens_match_esm2_and_decode_to_residues():
    tokenizer = protein_tokenizer()
    assert tokenizer.get_vocab_size() == 33
    assert tokenizer.encode("LAGC").ids == [4, 5, 6, 23]
    assert tokenizer.decode([0, 4, 5, 32, 23, 2, 1, 1], skip_special_tokens=False) == "LA[MASK]C"
    for number, name in enumerate(ALPHABET[:-1]):
        assert tokenizer.token_to_id(name) == number
    with pytest.raises(Exception, match="WordLevel"):
        tokenizer.encode("LA1")
    assert is_protein_tokenizer(tokenizer)
    assert not is_protein_tokenizer(None)


def test_cleaning_keeps_distinct_standard_proteins_of_fitting_lengths():
    sequences = ["MKTAY", "MKXAY", "MKT", "MKTAYIAKQR", "MKTAY", "mktay", "ACDEF"]
    assert standard_proteins(sequences, min_length=4, max_length=8) == ["MKTAY", "ACDEF"]
    with pytest.raises(UsageError, match="max_length is 9 or more"):
        standard_proteins(sequences, min_length=9, max_length=8)


def test_an_unknown_corpus_and_one_of_short_proteins_only_are_refused(tmp_path):
    with pytest.raises(UsageError, match="a corpus of proteins is one of swissprot, uniprot, vh, or a file"):
        load_proteins("swisprot")
    (tmp_path / "short.fasta").write_text(">one\nMKT\n")
    assert load_proteins(str(tmp_path / "short.fasta")) == ["MKT"]
    with pytest.raises(UsageError, match="holds proteins of 50 to 254 standard residues"):
        prepare_proteins(str(tmp_path / "short.fasta"))


# --- splits -----------------------------------------------------------------


def test_no_cluster_is_in_two_splits_and_training_has_all_members():
    source = random.Random(3)
    clusters = []
    for number in range(400):  # representatives may be any member; here they are the first
        clusters.append(number if number < 20 or source.random() < 0.3 else source.choice(clusters))
    splits = split_by_cluster(clusters, seed=1, validation=0.1, test=0.2)
    parts = [[members[0] for members in splits.train], splits.validation, splits.test]
    split_clusters = [{clusters[number] for number in part} for part in parts]
    for members in splits.train:
        assert sorted(members) == [number for number, cluster in enumerate(clusters) if cluster == members[0]]
    assert set.union(*split_clusters) == set(clusters)
    assert sum(map(len, split_clusters)) == len(set(clusters)) == sum(map(len, parts))
    assert all(clusters[number] == number for part in parts for number in part)
    assert len(splits.test) == round(0.2 * len(set(clusters)))
    assert len(splits.validation) == round(0.1 * len(set(clusters)))
    assert splits == split_by_cluster(clusters, seed=1, validation=0.1, test=0.2)
    assert splits != split_by_cluster(clusters, seed=2, validation=0.1, test=0.2)


def test_clusters_that_cannot_be_split_are_refused():
    with pytest.raises(UsageError, match="sequence 1 is not"):
        split_by_cluster([0, 0, 1])
    with pytest.raises(UsageError, match="leave a cluster to train on"):
        split_by_cluster([0, 1], validation=0.5, test=0.5)


def test_a_missing_program_is_reported_with_its_installation(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        DidiError, match="mmseqs, which is not on PATH: install it, on Debian by apt-get install mmseqs2"
    ):
        mmseqs.clusters_of(["MKT"])


@needs_mmseqs
@pytest.mark.slow
def test_mutated_copies_of_a_protein_share_a_cluster_and_a_split(tmp_path, monkeypatch):
    monkeypatch.setenv("DIDI_CACHE", str(tmp_path / "cache"))
    families = random_proteins(30, 100)
    proteins = [mutated(residues, 10, 31 * n + copy) for n, residues in enumerate(families) for copy in range(3)]
    clusters = mmseqs.clusters_of(proteins)
    assert [len(set(clusters[3 * n : 3 * n + 3])) for n in range(30)] == [1] * 30
    assert len(set(clusters)) == 30
    identities = mmseqs.nearest_identities([proteins[0], random_proteins(1, 100, seed=9)[0]], proteins[1:3])
    assert 0.7 < identities[0] < 0.95
    assert identities[1] == 0
    (tmp_path / "made.fasta").write_text("".join(fasta_record(str(n), residues) for n, residues in enumerate(proteins)))
    data = prepare_proteins(str(tmp_path / "made.fasta"), seed=2)
    family = {residues: number // 3 for number, residues in enumerate(proteins)}
    assert all(len({family[residues] for residues in members}) == 1 for members in data.train)
    assert sum(map(len, data.train)) == 3 * len(data.train)
    train = list(itertools.chain.from_iterable(data.train))
    split_families = [{family[residues] for residues in part} for part in (train, data.validation, data.test)]
    assert set.union(*split_families) == set(range(30))
    assert [len(families) for families in split_families] == [26, 2, 2]
    monkeypatch.setattr(protein, "clusters_of", None)  # the cache is used
    assert prepare_proteins(str(tmp_path / "made.fasta"), seed=2) == data


# --- batches ----------------------------------------------------------------


def test_a_canvas_has_begin_and_end_symbols_and_padding():
    canvas = protein_canvas(["LAG", "C"])
    assert canvas.tokens.tolist() == [[0, 4, 5, 6, 2], [0, 23, 2, 1, 1]]
    assert canvas.is_free.tolist() == [[False, True, True, True, False], [False, True, False, False, False]]
    assert canvas.lengths == [5, 3]
    assert protein_canvas(["LAG"]).attention_mask is None
    for wrong in ("LA1", "La", "LÄ"):
        with pytest.raises(UsageError, match="a protein is made of the letters"):
            protein_canvas([wrong])


def test_batches_have_proteins_of_similar_length_each_once_per_epoch():
    source = random.Random(0)
    proteins = [residues[: source.randint(5, 90)] for residues in random_proteins(203, 90)]
    clusters = [[residues] for residues in proteins]
    buckets = LengthBuckets(clusters, batch_size=8, width=10, seed=4)
    assert buckets.num_batches == 25
    tokenizer = protein_tokenizer()
    epochs = []
    for epoch in range(2):
        batches, spreads = [], []
        for number in range(buckets.num_batches):
            rows = buckets.batch(epoch * buckets.num_batches + number)
            assert rows.shape[0] == 8
            assert not (rows == 1).all(0).any()  # no column is all padding
            lengths = canvas_of_rows(rows).num_free
            spreads.append(int(lengths.max() - lengths.min()))
            batches.append(tokenizer.decode_batch(rows.tolist(), skip_special_tokens=False))
        drawn = list(itertools.chain.from_iterable(batches))
        assert len(set(drawn)) == 200
        assert set(drawn) <= set(proteins)
        assert max(spreads) < 20  # a batch may begin in one bucket and end in the next
        assert sum(spread < 10 for spread in spreads) > 15
        epochs.append(batches)
    assert epochs[0] != epochs[1]
    assert set(itertools.chain(*epochs[0])) != set(itertools.chain(*epochs[1]))  # different proteins are left over
    again = LengthBuckets(clusters, batch_size=8, width=10, seed=4)
    for step in (3, buckets.num_batches + 1, 0):
        assert torch.equal(again.batch(step), buckets.batch(step))
    assert not torch.equal(LengthBuckets(clusters, batch_size=8, seed=5).batch(0), buckets.batch(0))


@pytest.mark.slow
def test_an_epoch_has_one_random_member_of_each_cluster():
    sizes = [1, 4, 2, 1, 3, 5, 1, 2, 4, 2]
    clusters = [[("ACDEFGHIKL"[n] + "ACDEFGHIKL"[m]) * 10 for m in range(size)] for n, size in enumerate(sizes)]
    buckets, texts = LengthBuckets(clusters, batch_size=5, seed=2), protein_tokenizer()
    counts = Counter[str]()
    for epoch in range(400):
        rows = [buckets.batch(2 * epoch + number) for number in range(2)]
        drawn = [residues for batch in rows for residues in texts.decode_batch(batch.tolist())]
        assert sorted(residues[0] for residues in drawn) == list("ACDEFGHIKL")
        counts.update(drawn)
    for members in clusters:
        expected = 400 / len(members)
        assert all(abs(counts[residues] - expected) <= 4 * expected**0.5 for residues in members)


def test_a_batch_of_more_proteins_than_there_are_clusters_is_refused():
    for clusters in ([["MAG", "MAL"]], []):
        with pytest.raises(UsageError, match=f"each of the {len(clusters)} clusters; got batch_size 2: lower it"):
            LengthBuckets(clusters, batch_size=2)
    with pytest.raises(UsageError, match="a cluster has one protein or more; got an empty one"):
        LengthBuckets([["MAG"], [], ["MAL"]], batch_size=1)


# --- sources ----------------------------------------------------------------


@pytest.fixture
def fasta(tmp_path, monkeypatch):
    """A FASTA file in which each protein is a cluster."""
    monkeypatch.setenv("DIDI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(protein, "clusters_of", lambda proteins, **_: list(range(len(proteins))))
    file = tmp_path / "some.fasta"
    file.write_text("".join(f">{n}\n{residues}\n" for n, residues in enumerate(random_proteins(100, 60))))
    return file


def test_a_source_has_the_splits_of_the_corpus_and_its_canvas(fasta):
    source, data = open_source(str(fasta), length=64), prepare_proteins(str(fasta), max_length=62)
    assert isinstance(source, Source)
    assert (source.vocab_size, source.mask_id, source.has_lengths, source.mean_length) == (33, 32, True, 60)
    for rows, proteins in ((source.validation, data.validation), (source.test, data.test)):
        assert source.tokenizer.decode_batch(rows.tolist(), skip_special_tokens=False) == proteins
        canvas = source.canvas(rows)
        assert canvas.num_free.tolist() == [len(residues) for residues in proteins]
    assert torch.equal(source.batch(3, 4), open_source(str(fasta), length=64).batch(3, 4))
    assert not torch.equal(source.batch(3, 4), open_source(str(fasta), length=64, seed=1).batch(3, 4))


def test_two_halves_have_no_training_protein_in_common(fasta):
    whole, first, second = (prepare_proteins(f"{fasta}{half}", max_length=62) for half in ("", ":first", ":second"))
    assert len(first.train) == len(second.train) == 45
    assert sorted(first.train + second.train) == sorted(whole.train)
    assert all(len(members) == 1 for members in whole.train)
    for half in (first, second):
        assert (half.validation, half.test) == (whole.validation, whole.test)


@pytest.mark.parametrize(
    ("corpus", "expected"),
    [("swissprot", True), ("swissprot:first", True), ("swissprot:third", True), ("x.fa.gz:second", True),
     ("news", False), ("news:first", False), ("x.jsonl", False)],
)  # fmt: skip
def test_a_corpus_of_proteins_is_recognised_by_its_name(corpus, expected):
    assert is_protein_corpus(corpus) is expected


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("swissprot:third", "with :first or :second for half of the training proteins; got 'swissprot:third'"),
        ("/nowhere/some.fasta", "must be an existing file; '/nowhere/some.fasta' is not; check the path"),
    ],
)
def test_an_unknown_corpus_of_proteins_is_refused(corpus, message):
    with pytest.raises(UsageError, match=message):
        open_source(corpus, length=64)


def test_invalid_options_of_a_source_of_proteins_are_refused(fasta):
    for options, message in (
        ({"length": 51}, "data.length is 52 or more for proteins"),
        ({"length": 64, "vocab_size": 100}, "a vocabulary of their own"),
        ({"length": 64, "tokenizer": "gpt2"}, "a vocabulary of their own"),
        ({"length": 64, "block_layout": "bos-eos"}, "have block_layout stream"),
        ({"length": 64, "tokenizer": MarkovSource(8, 0).tokenizer}, "have the tokens of ESM-2; got another tokenizer"),
    ):
        with pytest.raises(UsageError, match=message):
            open_source(str(fasta), **options)
