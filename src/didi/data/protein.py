"""Proteins: the tokenizer of ESM-2, whose tokens are residues, and corpora that are split by clusters of sequences.

Corpora are FASTA files, or one of ``CORPORA``, which are fetched from package registries.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from didi.arguments import whole_number
from didi.data.antibody import HeavyChain, clones_of, read_airr
from didi.data.assets import fetch
from didi.data.blastdb import read_blastdb
from didi.data.cache import cache_dir, made_folder
from didi.data.fasta import fasta_record, read_fasta
from didi.data.mmseqs import clusters_of
from didi.data.protein_split import split_by_cluster
from didi.errors import UsageError, suggestion
from didi.models.proteins import ALPHABET, MASK_ID, RESIDUES
from didi.models.tokenizer_fit import MASK

HALVES = ("first", "second")
"""Names of the halves of the training proteins of a corpus."""


def protein_tokenizer() -> Tokenizer:
    """The tokenizer of ESM-2 and DPLM, one token per letter, with ``[MASK]`` in place of ``<mask>``.

    It adds no begin and end symbols (``protein_batches.protein_rows`` does). Decoding omits special symbols.
    """
    vocab = {name: number for number, name in enumerate(ALPHABET)}
    vocab[MASK] = vocab.pop(ALPHABET[MASK_ID])
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=""))  # no unknown token: other letters are errors
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.add_special_tokens([AddedToken(MASK, normalized=False, special=True)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex("<.+>"), ""), decoders.Fuse()])
    return tokenizer


def is_protein_tokenizer(tokenizer: Tokenizer | None) -> bool:
    """Whether the tokens are residues: every standard residue is a token, and no token is a longer word."""
    if tokenizer is None:
        return False
    vocab = tokenizer.get_vocab()
    return all(residue in vocab for residue in RESIDUES) and not any(name.isalpha() and len(name) > 1 for name in vocab)


def is_protein_corpus(corpus: str) -> bool:
    """Whether a name means proteins: a corpus of ``CORPORA``, a FASTA file, or a half of these."""
    name, _ = _name_and_half(corpus)
    return corpus.partition(":")[0] in CORPORA or name.removesuffix(".gz").endswith(FASTA_ENDINGS)


def _name_and_half(corpus: str) -> tuple[str, str]:
    """A corpus without the suffix of a half, and the half; the half is empty for the whole corpus."""
    name, _, half = corpus.rpartition(":")
    return (name, half) if half in HALVES else (corpus, "")


@dataclass(frozen=True)
class ProteinData:
    """Proteins for training, for choices during development (validation), and for reported results (test).

    No cluster of similar sequences is in two splits.

    Attributes:
        train: members of each training cluster, the representative first.
        validation: representatives of clusters.
        test: representatives of clusters.
    """

    train: list[list[str]]
    validation: list[str]
    test: list[str]


def prepare_proteins(
    corpus: str, *, min_length: int = 50, max_length: int = 254, identity: float = 0.5, seed: int = 0
) -> ProteinData:
    """The splits of a corpus, which are cached.

    Args:
        corpus: a key of ``CORPORA``, or a FASTA file (``.fasta``, ``.fa``, ``.faa``, also with ``.gz``). The suffix
            ``:first`` or ``:second`` selects half of the training clusters: the halves have no cluster in common, and
            the same validation and test proteins.
        min_length: smallest number of residues.
        max_length: largest number of residues; longer proteins are left out, not cut.
        identity: smallest identity of a protein with the representative of its cluster, over 80% of both. It has no
            effect on ``vh``, whose clusters are clones (``antibody.clones_of``).
        seed: seed of the split.

    Raises:
        UsageError: the name is unknown, or no protein is left.
        DidiError: the corpus cannot be fetched, or mmseqs2 is missing.
    """
    name, half = _name_and_half(corpus)
    proteins = standard_proteins(load_proteins(name), min_length=min_length, max_length=max_length)
    if not proteins:
        raise UsageError(
            f"a corpus holds proteins of {min_length} to {max_length} standard residues; {corpus!r} holds none: change "
            "min_length or max_length"
        )
    digest = sha256("\n".join(proteins).encode())
    kind = CORPORA.get(name) or Corpus(partial(load_proteins, name))
    rule = ["members", identity, seed] if kind.clusters is None else ["clones", kind.held_out, seed]
    digest.update(json.dumps(rule).encode())
    stem = Path(name).name.partition(".")[0]
    folder = cache_dir() / "proteins" / f"{stem}-{digest.hexdigest()[:12]}"
    made_folder(folder, partial(_write_splits, proteins, kind, identity, seed))
    validation, test = (
        [protein.residues for protein in read_fasta(folder / f"{split}.fasta")] for split in ("validation", "test")
    )
    train = _read_clusters(folder / "train.fasta")
    if half:  # the order of clusters is random
        train = train[HALVES.index(half) :: len(HALVES)]
    return ProteinData(train, validation, test)


def _write_splits(proteins: list[str], kind: "Corpus", identity: float, seed: int, folder: Path) -> None:
    numbers = clusters_of(proteins, identity=identity) if kind.clusters is None else kind.clusters(proteins)
    splits = split_by_cluster(numbers, seed=seed, validation=kind.held_out, test=kind.held_out)
    by_split = {"train": splits.train, "validation": [[index] for index in splits.validation],
                "test": [[index] for index in splits.test]}  # fmt: skip
    for split, clusters in by_split.items():
        with (folder / f"{split}.fasta").open("w", encoding="ascii") as stream:
            for members in clusters:
                stream.writelines(fasta_record(f"{index} cluster={members[0]}", proteins[index]) for index in members)


def _read_clusters(path: Path) -> list[list[str]]:
    """Sequences of a file of ``_write_splits``, a list for each cluster."""
    clusters: dict[str, list[str]] = {}
    for protein in read_fasta(path):
        clusters.setdefault(protein.title.partition(" ")[2], []).append(protein.residues)
    return list(clusters.values())


def standard_proteins(sequences: Iterable[str], *, min_length: int, max_length: int) -> list[str]:
    """Distinct sequences of standard residues only, with lengths in [min_length, max_length], in their order."""
    low = whole_number("min_length", min_length, low=1)
    high = whole_number("max_length", max_length, low=low)
    standard = frozenset(RESIDUES)
    kept = (residues for residues in sequences if low <= len(residues) <= high and standard.issuperset(residues))
    return list(dict.fromkeys(kept))


def load_proteins(corpus: str) -> list[str]:
    """All sequences of a corpus, unchanged and in its order.

    Args:
        corpus: as in ``prepare_proteins``, without ``:first`` and ``:second``.

    Raises:
        UsageError: the name is unknown, or the file is missing.
        DidiError: the corpus cannot be fetched.
    """
    path = Path(corpus).expanduser()
    if corpus in CORPORA:
        return CORPORA[corpus].load()
    if path.name.removesuffix(".gz").endswith(FASTA_ENDINGS):
        if not path.is_file():
            raise UsageError(
                f"a corpus of proteins in a FASTA file must be an existing file; {corpus!r} is not; check the path"
            )
        return [protein.residues for protein in read_fasta(path)]
    raise UsageError(
        f"a corpus of proteins is one of {', '.join(CORPORA)}, or a file {', '.join(FASTA_ENDINGS)}, perhaps with .gz, "
        f"with :first or :second for half of the training proteins; got {corpus!r}{suggestion(corpus, CORPORA)}"
    )


def _swissprot() -> list[str]:
    """The distinct sequences of the three databases of the asset."""
    databases = sorted(fetch("swissprot").glob("*/*.pin"))
    return list(dict.fromkeys(residues for index in databases for residues in read_blastdb(index.with_suffix(""))))


def _uniprot() -> list[str]:
    return [protein.residues for protein in read_fasta(fetch("uniprot") / "DB.fasta.gz")]


def _vh() -> list[HeavyChain]:
    return read_airr(fetch("vh") / "example_airr.tsv.gz")


def _vh_clones(proteins: Sequence[str]) -> list[int]:
    chains = {chain.residues: chain for chain in _vh()}
    return clones_of([chains[residues] for residues in proteins])


@dataclass(frozen=True)
class Corpus:
    """A corpus with a name.

    Attributes:
        load: returns all sequences.
        clusters: for each of the given sequences of the corpus, the number of the first one of its cluster; None for
            clusters of similar sequences by mmseqs2.
        held_out: share of the clusters in each of the validation and test splits.
    """

    load: Callable[[], list[str]]
    clusters: Callable[[Sequence[str]], list[int]] | None = None
    held_out: float = 0.05


CORPORA = {
    "swissprot": Corpus(_swissprot),
    "uniprot": Corpus(_uniprot),
    "vh": Corpus(lambda: [chain.residues for chain in _vh()], clusters=_vh_clones, held_out=0.1),
}
FASTA_ENDINGS = (".fasta", ".fa", ".faa")
