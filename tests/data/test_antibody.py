"""Antibody heavy chains: translation, clones, and a split without a clone in two parts."""

import gzip
import itertools
import random

import pytest

from didi.data import protein
from didi.data.antibody import CODONS, HeavyChain, clones_of, in_frame, read_airr, translated
from didi.data.protein import prepare_proteins
from didi.models.proteins import RESIDUES

COLUMNS = ("productive", "v_call", "sequence_alignment", "junction_aa")
CODON = {residue: codon for codon, residue in CODONS.items()}


def chain(junction, *genes, residues=""):
    return HeavyChain(residues or junction, frozenset(genes or ("IGHV1-2",)), junction)


def test_codons_are_translated():
    assert translated("ATGGCNTGGTAAAC") == "M*W*"
    assert (CODONS["ATG"], CODONS["TGG"], len(CODONS)) == ("M", "W", 64)
    assert translated("GAAGTGCAGCTGGTGGAG") == "EVQLVE"


def table_of(tmp_path, *rows):
    with gzip.open(tmp_path / "some.tsv.gz", "wt") as stream:
        stream.writelines("\t".join(row) + "\n" for row in (COLUMNS, *rows))
    return tmp_path / "some.tsv.gz"


def test_chains_are_distinct_productive_domains_without_gaps(tmp_path):
    table = table_of(
        tmp_path,
        ("T", "IGHV3-9*01,IGHV3-20*02", "gaa...GTG---CAG", "VQ"),
        ("T", "IGHV3-9*01", "GAAGTGCAG", "EV"),  # the same domain
        ("F", "IGHV3-9*01", "CAGGTGCAG", "VQ"),
        ("T", "IGHV3-9*01", "GAATAACAG", "Q"),
        ("T", "IGHV3-9*01", "GAANTGCAG", "Q"),
        ("T", "IGHV4-4*01", "CAGCTGCAG", "LQ"),
        ("T", "IGHV4-4*01", "CAGCTGCTG", "LQ"),  # its junction is in another frame
    )
    assert read_airr(table) == [
        HeavyChain("EVQ", frozenset({"IGHV3-9", "IGHV3-20"}), "VQ"),
        HeavyChain("QLQ", frozenset({"IGHV4-4"}), "LQ"),
    ]


@pytest.mark.parametrize(
    ("alignment", "residues"),
    [
        (".AAGTGCAG", "VQ"),
        ("..AGTGCAG", "VQ"),
        ("--.GTGCAG", "VQ"),
        ("....TGCAGCTG", "QL"),
        ("GA-...--AGTG", "EV"),  # codons are joined where three nucleotides are missing
        ("GAAG---TG", "EV"),
        ("GAAGT-CAG", ""),
        ("GAAG--CAG", ""),
        ("GA-GTG--GCAG", ""),  # the second gap restores the frame, but the residues between the gaps are of another one
        ("GAAGTGCA", "EV"),
        ("." * 77 + "GGTGCAG", "VQ"),
        ("." * 78 + "GTGCAG", ""),  # without the first framework
    ],
)
def test_domains_are_read_in_the_frame_of_the_alignment(alignment, residues, tmp_path):
    assert translated(in_frame(alignment)) == residues
    domains = [heavy.residues for heavy in read_airr(table_of(tmp_path, ("T", "IGHV1-2", alignment, residues[-1:])))]
    assert domains == ([residues] if residues else [])


def test_clones_share_a_v_gene_and_most_of_their_junction():
    chains = [
        chain("CAAAAAAAAW"),
        chain("CCCAAAAAAW"),  # 8 of 10 residues equal
        chain("CCCCAAAAAW"),  # 7 of 10 equal to the first, but 9 of 10 equal to the chain before it
        chain("CAAAAAAAAW", "IGHV9-9"),  # another gene
        chain("CAAAAAAAW"),  # another length
        chain("DDDDDDDDDD"),
        chain("CAAAAAAAAW", "IGHV9-9", "IGHV8-8"),
        chain("CCAAAAAAAW", "IGHV8-8"),
    ]
    assert clones_of(chains) == [0, 0, 0, 3, 4, 5, 3, 3]
    assert clones_of(chains[:1] + chains[2:3]) == [0, 1]
    assert clones_of(chains[2::-1]) == [0, 0, 0]
    assert clones_of([]) == []


def made_chains(num_clones, seed=0):
    """Clones of one to four members, in random order; junctions of different clones are unlike each other."""
    source, chains = random.Random(seed), []
    for number in range(num_clones):
        junction, gene = "".join(source.choices(RESIDUES, k=20)), f"IGHV{number % 3}-1"
        for member in range(source.randint(1, 4)):
            mutated = junction[:member] + source.choice(RESIDUES) + junction[member + 1 :]
            domain = "".join(source.choices(RESIDUES, k=60)) + mutated
            chains.append((number, HeavyChain(domain, frozenset({gene}), mutated)))
    source.shuffle(chains)
    return chains


def test_no_clone_is_in_two_splits(tmp_path, monkeypatch):
    monkeypatch.setenv("DIDI_CACHE", str(tmp_path / "cache"))
    chains = made_chains(60)
    monkeypatch.setattr(protein, "_vh", lambda: [heavy for _, heavy in chains])
    clone = {heavy.residues: number for number, heavy in chains}
    data, halves = prepare_proteins("vh"), [prepare_proteins(f"vh:{half}") for half in ("first", "second")]
    parts = [list(itertools.chain.from_iterable(part.train)) for part in halves] + [data.validation, data.test]
    clones = [{clone[residues] for residues in part} for part in parts]
    assert [len(numbers) for numbers in clones] == [24, 24, 6, 6]
    assert set.union(*clones) == set(range(60))
    assert all(len({clone[residues] for residues in members}) == 1 for members in data.train)
    train = [residues for residues, number in clone.items() if number in clones[0] | clones[1]]
    assert sorted(parts[0] + parts[1]) == sorted(train)
    monkeypatch.setattr(protein, "clones_of", None)  # the cache is used
    assert prepare_proteins("vh") == data


@pytest.mark.network
def test_the_asset_has_the_documented_numbers():
    data = prepare_proteins("vh")
    chains = protein._vh()
    assert (len(chains), len(set(clones_of(chains)))) == (1340, 998)
    assert (len(data.train), len(data.validation), len(data.test)) == (798, 100, 100)
    train, held_out = [residues for members in data.train for residues in members], data.validation + data.test
    assert [(min(map(len, part)), max(map(len, part))) for part in (train, data.test)] == [(112, 141), (118, 136)]
    by_residues = {heavy.residues: heavy for heavy in chains}
    for first, second in itertools.product(map(by_residues.get, train), map(by_residues.get, held_out)):
        if first.v_genes & second.v_genes and len(first.junction) == len(second.junction):
            num_equal = sum(a == b for a, b in zip(first.junction, second.junction, strict=True))
            assert num_equal < 0.8 * len(first.junction)
