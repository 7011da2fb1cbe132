"""docs/add-a-method.md as it stands: the method trains, resumes and passes the test that the page gives it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import didi.apps.train as train
import didi.methods
import didi.recipes
from didi.models.bundle import load
from didi.training.loop import RunFolder

from .docs_pages import blocks, functions_of, module_from

BLOCKS = blocks("add-a-method.md")
METHOD, TEST = "src/didi/methods/kd.py", "tests/training/test_kd.py"


@pytest.fixture
def method(monkeypatch, tmp_path):
    """The module of the method, registered by the line of the page."""
    module = module_from(BLOCKS[METHOD], METHOD, monkeypatch, tmp_path)
    (line,) = [code for code in BLOCKS.values() if "METHODS: " in code]
    registry = dict(vars(didi.methods))
    exec(line, registry)
    monkeypatch.setattr(didi.methods, "METHODS", registry["METHODS"])
    return module


@pytest.fixture
def recipe(method):
    """The recipe of the page."""
    (entry,) = [code for code in BLOCKS.values() if code.startswith('"markov-kd"')]
    ((name, settings),) = eval(f"{{{entry}}}", {**vars(didi.recipes), "KdConfig": method.KdConfig}).items()
    assert name == settings.recipe
    return settings


def test_the_page_has_the_blocks_that_are_tested():
    assert [name for name in BLOCKS if isinstance(name, str)] == [METHOD, TEST]
    assert len(BLOCKS) == 5


def test_the_test_of_the_page_passes(method, monkeypatch, tmp_path):
    assert didi.methods.find_method("kd") is method.KnowledgeDistillation
    tests = functions_of(module_from(BLOCKS[TEST], TEST, monkeypatch, tmp_path))
    assert tests
    for test in tests:
        test()


def test_the_recipe_runs_and_resumes(recipe, tmp_path):
    settings = replace(recipe, loop=replace(recipe.loop, batch_size=8, log_every=1, checkpoint_every=1)).limited(2)
    folder = RunFolder(tmp_path / "run")
    path = train.distill_run(settings, folder, resume=False, device=torch.device("cpu"))
    weights = load(path).student.state_dict()
    newest = max(folder.checkpoints.iterdir())
    newest.unlink()
    train.distill_run(settings, folder, resume=True, device=torch.device("cpu"))
    resumed = load(path).student.state_dict()
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 2]
    assert "kl" in rows[0]
    assert "validation_nelbo" in rows[-1]


def test_the_command_of_the_page_trains(method, recipe, monkeypatch, tmp_path):
    (code,) = [code for code in BLOCKS.values() if "distill_run(" in code]
    monkeypatch.setitem(didi.recipes.DISTILL, "markov-kd", recipe.limited(1))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert load(Path("runs/kd/bundle")).student.config.num_blocks == recipe.num_blocks
