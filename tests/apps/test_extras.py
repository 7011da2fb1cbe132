"""Messages about the installation of optional packages."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from didi.apps import doctor
from didi.errors import DidiError, from_checkout
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM

ROOT = Path(__file__).parents[2]


def test_nothing_advises_a_distribution_that_is_not_published():
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    assert not [file.name for file in files if re.search(r"pip install '?didi-instruct", file.read_text("utf-8"))]


def test_every_extra_that_is_named_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        name for file in ROOT.glob("src/**/*.py") for name in re.findall(r"from_checkout\('(\w+)'\)", file.read_text())
    }
    assert named <= set(extras)
    assert {"eval", "lora", "mauve"} <= named


def test_a_missing_package_is_reported_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    shape = AutoregressiveConfig(vocab_size=4, mask_id=3, length=2, hidden_size=8, num_blocks=1, num_heads=2)
    with pytest.raises(DidiError, match=re.escape(from_checkout("eval"))):
        AutoregressiveLM(shape)


def test_doctor_keeps_the_brackets_of_an_extra(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_variants", lambda *_: iter(()))
    monkeypatch.setattr(doctor.adapters, "are_available", lambda: False)
    doctor.doctor(["markov"])
    assert "pip install '.[lora]'\n" in capsys.readouterr().out
