"""Archives that tests make: zip, tar and Debian's ar, from names and contents of files."""

import io
import tarfile
import zipfile

FILES = {"pkg/data/a.txt": b"alpha", "pkg/data/deep/b.txt": b"beta", "pkg/code.py": b"raise SystemExit"}


def zip_bytes(files, links=()):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name in links else 0o100644) << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def tar_bytes(files, links=(), link_type=tarfile.SYMTYPE, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if name in links:
                info.type, info.linkname = link_type, data.decode()
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def ar_bytes(files):
    parts = [b"!<arch>\n"]
    for name, data in files.items():
        parts.append(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode())
        parts.append(data + b"\n" * (len(data) % 2))
    return b"".join(parts)
