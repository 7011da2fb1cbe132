"""The code of docs/add-a-method.md: the method trains, resumes and passes the test of the page."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import didi.methods
import didi.recipes.chains
from didi.apps.train import distill
from didi.models.bundle import load

from .docs_pages import DOCS, blocks, functions_of, module_from

BLOCKS = blocks("add-a-method.md")
METHOD, TEST = "src/didi/methods/kd.py", "tests/training/test_kd.py"


@pytest.fixture
def method(monkeypatch, tmp_path):
    """The module of the method, registered by the line of the page."""
    module = module_from(BLOCKS[METHOD], METHOD, monkeypatch, tmp_path)
    (line,) = [code for code in BLOCKS.values() if "METHODS: " in code]
    registry = dict(vars(didi.methods))
    exec(line, registry)
    assert set(registry["METHODS"]) == {*didi.methods.METHODS, "kd"}
    monkeypatch.setitem(didi.methods.METHODS, "kd", registry["METHODS"]["kd"])
    return module


@pytest.fixture
def recipe(method, monkeypatch):
    """The recipe of the page, registered by its entry and cut to two steps."""
    (entry,) = [code for code in BLOCKS.values() if code.startswith('("markov", "kd")')]
    ((key, settings),) = eval(f"{{{entry}}}", {**vars(didi.recipes.chains), "KdConfig": method.KdConfig}).items()
    loop = replace(settings.loop, batch_size=8, log_every=1, checkpoint_every=1)
    short = replace(settings, loop=loop).limited(2)
    monkeypatch.setitem(didi.recipes.VARIANTS, key, short)
    return short


def test_the_page_has_the_blocks_that_are_tested():
    assert [name for name in BLOCKS if isinstance(name, str)] == [METHOD, TEST]
    assert len(BLOCKS) == 4


@pytest.mark.slow
def test_the_test_of_the_page_passes(method, monkeypatch, tmp_path):
    assert didi.methods.find_method("kd") is method.KnowledgeDistillation
    tests = functions_of(module_from(BLOCKS[TEST], TEST, monkeypatch, tmp_path))
    assert tests
    for test in tests:
        test()


@pytest.mark.slow
def test_the_command_of_the_page_trains_and_resumes(recipe, monkeypatch, tmp_path, capsys):
    (line,) = re.findall(r"^didi distill (.*)$", (DOCS / "add-a-method.md").read_text(), re.M)
    monkeypatch.chdir(tmp_path)
    distill(line.split())
    assert capsys.readouterr().out == "runs/kd/bundle\n"
    weights = load("runs/kd/bundle").student.state_dict()
    max(Path("runs/kd/checkpoints").iterdir()).unlink()
    distill([*line.split(), "--resume"])
    resumed = load("runs/kd/bundle").student.state_dict()
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    rows = [json.loads(line) for line in Path("runs/kd/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 2]
    assert "kl" in rows[0]
    assert "validation_nelbo" in rows[-1]


@pytest.mark.slow
def test_settings_of_the_method_are_flags(recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    distill(["markov", "--method", "kd", "--num-blocks", "2", "--max-steps", "1", "--out", "run"])
    assert load("run/bundle").student.config.num_blocks == 2
