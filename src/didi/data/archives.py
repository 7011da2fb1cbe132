"""Safe extraction of untrusted zip, tar and ar archives, nested or not: plain files, one folder, bounded size."""

import errno
import hashlib
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from io import SEEK_CUR, BufferedIOBase, BytesIO
from pathlib import Path
from typing import NamedTuple

from didi.data.catalogue import Asset
from didi.errors import DidiError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
MAX_EXTRACTED_BYTES = 2**30  # per asset; the largest asset has 0.5 GB
CHUNK_BYTES = 2**20


def extract(asset: Asset, archive: Path, target: Path) -> dict[str, dict[str, str | int]]:
    """Write the members of ``asset`` to the folder ``target``.

    Returns:
        Size in bytes and SHA-256 of each member, by name.

    Raises:
        DidiError: a member is missing, is not a plain file or would leave the folder; or the archive is damaged or too
            large when unpacked.
        OSError: the archive cannot be read or ``target`` cannot be written.
    """
    try:
        return _extract(asset, archive, target)
    except DidiError:
        raise
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        # Other errors are caused by the archive, for example by a file with the name of a folder.
        raise DidiError(_not_unpacked(asset, error)) from error
    except Exception as error:  # zip, tar and compressors raise many classes of errors
        raise DidiError(_not_unpacked(asset, error)) from error


def _not_unpacked(asset: Asset, error: Exception) -> str:
    return f"{asset.archive} could not be unpacked: {' '.join(str(error).split())[:200]}"


def _extract(asset: Asset, archive: Path, target: Path) -> dict[str, dict[str, str | int]]:
    written: dict[str, dict[str, str | int]] = {}
    bytes_left = MAX_EXTRACTED_BYTES
    prefix = f"{asset.root}/" if asset.root else ""
    with archive.open("rb") as stream, _opened(stream, asset.inner) as source:
        for entry in _entries(source):
            name = entry.name.removeprefix(prefix)
            if not entry.name.startswith(prefix) or not any(fnmatchcase(name, pattern) for pattern in asset.members):
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
                    bytes_left -= len(chunk)
                    if bytes_left < 0:
                        limit = f"{MAX_EXTRACTED_BYTES} bytes"
                        raise DidiError(f"{asset.archive} may unpack to {limit}; {name!r} goes beyond; do not use it")
                    digest.update(chunk)
                    out.write(chunk)
                written[name] = {"bytes": out.tell(), "sha256": digest.hexdigest()}
    missing = [pattern for pattern in asset.members if not any(fnmatchcase(name, pattern) for name in written)]
    if missing:
        raise DidiError(f"{asset.archive} must hold {', '.join(missing)} in {asset.root or 'its root'}, and does not")
    return written


class _Entry(NamedTuple):
    """A member of an archive that is not a folder: a file, a link or a device."""

    name: str
    is_plain: bool
    open: Callable[[], BufferedIOBase]  # typeshed declares IO[bytes], which run-time type checks would refuse


@contextmanager
def _opened(stream: BufferedIOBase, inner: str) -> Iterator[BufferedIOBase]:
    """The inner archive, or the archive itself if ``inner`` is empty."""
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
    """Whether the path of a member stays inside its target folder, on any system."""
    return not {"", ".."} & set(name.split("/")) and not {"\\", ":"} & set(name)


def _entries(stream: BufferedIOBase) -> Iterator[_Entry]:
    """The members of a zip, ar or (compressed) tar archive, without folders."""
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
        while header := stream.read(60):  # bytes 48-57 are the size, after name, dates, owner and mode
            data = stream.read(int(header[48:58]))
            stream.seek(len(data) % 2, SEEK_CUR)
            yield _Entry(header[:16].decode().rstrip(" /"), True, partial(BytesIO, data))
    else:
        with tarfile.open(fileobj=stream) as archive:
            for member in archive:
                if not member.isdir():
                    opener = partial(archive.extractfile, member)
                    yield _Entry(member.name, member.isfile(), opener)  # type: ignore[arg-type]
