"""Check the digests of the returned archive parts of the GPU job, join them, and extract the bundles.

python benchmarks/gpu/collect.py FOLDER --into build/gpu/back
"""

import argparse
import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

from didi.errors import DidiError


def collect(folder: Path, into: Path) -> list[str]:
    """Extract the archive whose parts are in ``folder``; returns the names of the bundles.

    Raises:
        DidiError: a part is missing or damaged.
    """
    digests = json.loads((folder / "results.json").read_text("utf-8"))["parts"]
    content = b""
    for name, expected in sorted(digests.items()):
        part = (folder / name).read_bytes() if (folder / name).is_file() else b""
        actual = hashlib.sha256(part).hexdigest()
        if actual != expected:
            raise DidiError(f"{folder / name} must have SHA-256 {expected}, found {actual}; run the job again")
        content += part
    size = int.from_bytes(content[:8], "big")
    even, odd = (zlib.decompress(plane) for plane in (content[8 : 8 + size], content[8 + size :]))
    plain = bytearray(len(even) + len(odd))
    plain[::2], plain[1::2] = even, odd
    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        archive.extractall(into, filter="data")
        return sorted({name.partition("/")[0] for name in archive.getnames()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--into", type=Path, default=Path("build/gpu/back"))
    args = parser.parse_args()
    print("\n".join(collect(args.folder, args.into)))


if __name__ == "__main__":
    main()
