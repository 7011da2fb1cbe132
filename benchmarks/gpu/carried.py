"""Names and reading of the files that ``prepare`` writes for the GPU job."""

import lzma
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from didi.data.source import TextSource
from didi.data.text import TextData

CARRIED = Path("build/gpu")
DATA, WHEELS, TOKENIZER = "data", "wheels", "tokenizer.json"


def source(carried: Path, seed: int = 0) -> TextSource:
    """The tokenised corpus that ``prepare`` wrote."""
    folder = carried / DATA
    rows = {}
    for name in ("train", "validation", "test"):
        with lzma.open(folder / f"{name}.npy.xz") as stream:
            rows[name] = torch.from_numpy(np.load(stream).astype(np.int64))
    return TextSource(TextData(**rows, tokenizer=Tokenizer.from_file(str(folder / TOKENIZER))), seed)
