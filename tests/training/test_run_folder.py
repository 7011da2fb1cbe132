"""Files in its folder that a new run refuses, keeps or deletes."""

import pytest

from didi.errors import UsageError
from didi.models.bundle import Bundle, save
from didi.training.run_folder import RunFolder

CONFIG = "rate: 1\n"


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def with_bundle(folder, make_dit):
    save(Bundle(teacher=make_dit()), folder.bundle)
    return folder


def contents(folder):
    return {path.relative_to(folder.path).as_posix(): path.read_bytes() for path in folder.path.rglob("*.*")}


def test_a_bundle_is_not_replaced_by_a_new_run(with_bundle):
    before = contents(with_bundle)
    for config in (None, CONFIG):
        with pytest.raises(UsageError, match=r"run holds bundle/: add --overwrite to replace it, or choose another$"):
            with_bundle.check(config, resume=False)
    with pytest.raises(UsageError, match="holds bundle/"):
        with_bundle.prepare(CONFIG, resume=False)
    assert contents(with_bundle) == before


def test_settings_are_not_replaced_by_those_of_a_new_run(folder):
    folder.prepare(CONFIG, resume=False)
    folder.prepare(CONFIG, resume=False)
    folder.check(resume=False)
    folder.settings.write_text("# mine\nrate: 1\n")
    with pytest.raises(UsageError, match=r"run holds another config\.yaml: add --overwrite to replace it, or choose"):
        folder.prepare(CONFIG, resume=False)
    assert folder.settings.read_text() == "# mine\nrate: 1\n"


def test_a_run_that_is_overwritten_leaves_nothing_but_foreign_files(with_bundle):
    folder = with_bundle
    folder.checkpoints.mkdir()
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/step-00000009.safetensors"):
        (folder.path / name).write_text("old")
    for name in ("teacher-pool.safetensors", "wandb-run-id"):
        (folder.path / name).write_text("old")
    for name in ("notes.md", "checkpoints/notes.md"):
        (folder.path / name).write_text("mine")
    folder.prepare(CONFIG, resume=False, overwrite=True)
    assert not folder.has_run
    assert contents(folder) == {"config.yaml": CONFIG.encode(), "notes.md": b"mine", "checkpoints/notes.md": b"mine"}
    assert sorted(path.name for path in folder.path.rglob("*")) == [
        "checkpoints", "config.yaml", "notes.md", "notes.md",
    ]  # fmt: skip


def test_overwriting_keeps_a_folder_that_is_no_bundle(folder):
    folder.bundle.mkdir(parents=True)
    (folder.bundle / "thesis.tex").touch()
    with pytest.raises(UsageError, match="bundle is something else: move it"):
        folder.prepare(CONFIG, resume=False, overwrite=True)
    assert (folder.bundle / "thesis.tex").exists()


def test_resuming_leaves_a_bundle_alone(with_bundle):
    with_bundle.settings.write_text(CONFIG)
    before = contents(with_bundle)
    with_bundle.prepare(CONFIG, resume=True)
    assert contents(with_bundle) == before
