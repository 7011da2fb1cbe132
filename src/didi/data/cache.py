"""The cache: folders that are written atomically, have the SHA-256 of each file, and are rebuilt when damaged.

The ``manifest.json`` of a folder records the size in bytes and the SHA-256 of each file under ``members``.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from safetensors import SafetensorError

from didi.errors import DidiError
from didi.files import sha256, staged_folder

MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The cache folder: the environment variable ``DIDI_CACHE``, or the cache folder of the user."""
    path = os.environ.get("DIDI_CACHE")
    return Path(path).expanduser() if path else platformdirs.user_cache_path("didi", appauthor=False)


def packed_dir() -> Path:
    """Folder of the packed corpora, which have a folder each."""
    return cache_dir() / "text"


def made_folders(parent: Path, pattern: str = "[!.]*") -> list[Path]:
    """Folders in ``parent`` from ``made_folder``; folders of earlier versions, without digests, are left out."""
    return sorted(file.parent for file in parent.glob(f"{pattern}/{MANIFEST}"))


@contextmanager
def cached_folder(folder: Path) -> Iterator[Path]:
    """As ``staged_folder`` with a lock, for a folder of the cache.

    Yields:
        An empty folder that replaces ``folder`` if the block ends without an error.

    Raises:
        DidiError: The folder cannot be written.
    """
    try:
        with staged_folder(folder, is_locked=True) as staging:
            yield staging
    except (OSError, SafetensorError) as error:  # safetensors raises the latter if the disk is full
        raise DidiError(f"{folder} could not be written: {error}; name another place with DIDI_CACHE") from error


def made_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, which is built by ``make`` unless it exists and every file has its digest.

    Safe to call from several processes: one builds the folder, and the others wait.

    Args:
        folder: The folder.
        make: Function that fills an empty folder, which then replaces ``folder``.

    Returns:
        ``folder``.

    Raises:
        DidiError: The folder cannot be written.
    """
    if damage(folder) is None:
        return folder
    with cached_folder(folder) as staging:
        fault = damage(folder)
        if fault is None:  # another process was first
            return folder
        if folder.exists():
            if not (folder / MANIFEST).exists():  # folders are written atomically, so this is the only likely cause
                fault = f"{folder / MANIFEST} is missing, as in folders of earlier versions"
            log.warning("%s; %s is made again", fault, folder)
        make(staging)
        write_manifest(staging, {"members": digests(staging)})
    return folder


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest of a folder; ``content["members"]`` is a result of ``digests``."""
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder of the cache; None if it is missing or damaged."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        members = content["members"].values()
        is_valid = all(type(entry["bytes"]) is int and type(entry["sha256"]) is str for entry in members)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return content if is_valid else None


def digests(folder: Path) -> dict[str, dict[str, str | int]]:
    """Size in bytes and SHA-256 of each file of a folder except the manifest, by relative path."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in paths.items() if name != MANIFEST
    }


def damage(folder: Path, *, is_hashed: bool = True) -> str | None:
    """The first fault of a folder of the cache, as a clause that names the file; None if there is none.

    Args:
        folder: The folder.
        is_hashed: Whether to compare the SHA-256 of each file, not only its size.
    """
    recorded = read_manifest(folder)
    if recorded is None:
        return f"{folder / MANIFEST} must give the SHA-256 of each file, and is missing or damaged"
    for name, entry in recorded["members"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                return f"{path} must have {entry['bytes']} bytes, found {size}"
            if is_hashed and (digest := sha256(path)) != entry["sha256"]:
                return f"{path} must have SHA-256 {entry['sha256']}, found {digest}"
        except OSError as error:
            return f"{path} must have SHA-256 {entry['sha256']}, found no file that can be read ({error.strerror})"
    return None
