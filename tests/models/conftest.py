"""A bundle with a network of every role, folders in which it is saved, and padded proteins."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.schedule import Cosine
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle, save
from didi.models.proteins import ALPHABET, MASK_ID

TOKENS = {"a": 0, "b": 1, "[MASK]": 3, "c": 2}


@pytest.fixture(scope="module")
def bundle(make_dit, make_discriminator):
    """A bundle with random networks in all roles."""
    teacher = make_dit(seed=1)
    return Bundle(
        student=make_dit(seed=2, is_time_conditioned=True),
        teacher=teacher,
        discriminator=make_discriminator(teacher, output="sequence"),
        autoregressive=AutoregressiveLM(
            AutoregressiveConfig(
                vocab_size=teacher.vocab_size,
                mask_id=teacher.mask_id,
                length=4,
                hidden_size=8,
                num_blocks=1,
                num_heads=2,
            )
        ),
        tokenizer=Tokenizer(models.WordLevel(TOKENS, unk_token="a")),
        process=Absorbing(3, Cosine()),
        intended_nfe=16,
        provenance={"recipe": "test", "seed": 7, "figures": [1.5, None]},
    )


@pytest.fixture(scope="module")
def saved(bundle, tmp_path_factory):
    """The folder of the bundle; no test changes it."""
    return save(bundle, tmp_path_factory.mktemp("saved") / "deep" / "bundle")


@pytest.fixture
def folder_without_digests(folder):
    """A copy of the bundle without digests, so that its weights can be changed."""
    manifest = yaml.safe_load((folder / "bundle.yaml").read_text())
    del manifest["provenance"]["weights_sha256"]
    (folder / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the bundle that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "copies" / "bundle"))


@pytest.fixture(scope="session")
def canvas():
    """Framed proteins of several lengths, some residues masked, one unknown."""
    lengths = torch.tensor([12, 7, 3, 12])
    generator = torch.Generator().manual_seed(1)
    tokens = torch.full((len(lengths), 12), 1)
    for row, length in enumerate(lengths.tolist()):
        tokens[row, :length] = torch.randint(4, 24, (length,), generator=generator)
        tokens[row, 0], tokens[row, length - 1] = 0, 2
        is_masked = torch.rand(length, generator=generator) < 0.4
        tokens[row, :length][is_masked & (tokens[row, :length] > 3)] = MASK_ID
    tokens[0, 4] = ALPHABET.index("X")
    is_real = torch.arange(12) < lengths[:, None]
    return Canvas(tokens, is_real & (tokens > 3), is_real, has_padding=True)
