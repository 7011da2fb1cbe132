"""Prepare the files of the GPU job for a machine without a registry: wheels that it lacks, and the tokenised corpus.

    python benchmarks/gpu/prepare.py [--carried build/gpu] [--toy]

The machine is expected to have Python 3.12, torch, transformers, peft, tokenizers, safetensors, jaxtyping, filelock,
matplotlib, rich, scipy, PyYAML, huggingface-hub and pytest. ``--toy`` uses the pages of the project instead of the
corpus ``prose``, so that the job can be tried on a CPU without a registry.
"""

import argparse
import io
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
from carried import CARRIED, DATA, TOKENIZER, WHEELS

from didi.data.corpora import EOS
from didi.data.text import TextData, prepare_text
from didi.errors import UsageError
from didi.files import write_atomically
from didi.recipes import PRETRAIN

REPOSITORY = Path(__file__).parents[2]
MISSING = ("tyro", "platformdirs", "docstring_parser", "typeguard", "beartype")
LIMIT_BYTES = 60 * 2**20


def wheels(folder: Path) -> None:
    """Download the pinned wheels of packages that the machine lacks, for its Python."""
    folder.mkdir(parents=True, exist_ok=True)
    pins = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {line.partition("==")[0].replace("-", "_").lower(): line for line in pins if "==" in line}
    wanted = [pinned[name] for name in MISSING]
    client = "download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12"
    subprocess.run([sys.executable, "-m", "pip", *client.split(), "--dest", str(folder), *wanted], check=True)


def tokens(folder: Path, *, is_toy: bool) -> TextData:
    """Write the packed rows of the corpus as compressed 16-bit tokens, and its tokenizer."""
    settings = PRETRAIN["prose"].data
    if is_toy:
        text = folder / "toy.txt"
        pages = "\n\n".join(page.read_text("utf-8") for page in sorted((REPOSITORY / "docs").glob("*.md")))
        write_atomically(text, pages.replace(EOS, ""))  # with an EOS in the text, documents would end only there
        data = prepare_text(str(text), length=32, vocab_size=1024)
    else:
        data = prepare_text(settings.corpus, length=settings.length, vocab_size=settings.vocab_size)
    for name in ("train", "validation", "test"):
        rows = getattr(data, name).numpy().astype(np.uint16)
        stream = io.BytesIO()
        np.save(stream, rows)
        write_atomically(folder / f"{name}.npy.xz", lzma.compress(stream.getvalue()))
    data.tokenizer.save(str(folder / TOKENIZER))
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--carried", type=Path, default=CARRIED)
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    (args.carried / DATA).mkdir(parents=True, exist_ok=True)
    data = tokens(args.carried / DATA, is_toy=args.toy)
    if not args.toy:
        wheels(args.carried / WHEELS)
    size = sum(file.stat().st_size for file in args.carried.rglob("*") if file.is_file())
    if size > LIMIT_BYTES:
        raise UsageError(
            f"the files in {args.carried} take at most {LIMIT_BYTES / 2**20:g} MiB; got {size / 2**20:.1f} MiB"
        )
    print(f"{args.carried}: {size / 2**20:.1f} MiB, {len(data.train):,} training rows of {data.train.shape[1]} tokens")


if __name__ == "__main__":
    main()
