"""A full disk while a bundle is written: a one-line message, and existing files are kept."""

import errno
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from didi.apps.convert import export
from didi.errors import DidiError, UsageError
from didi.models import weights
from didi.models.bundle import Bundle, load, save

FILES = ["student/config.json", "student/model.safetensors", "tokenizer.json", "bundle.yaml", "README.md"]


@pytest.fixture
def fill_disk(monkeypatch):
    """Simulate a full disk when a certain file is written."""

    def make_full(name):
        write_text, save_file = Path.write_text, weights.save_file

        def text(path, *args, **options):
            if path.as_posix().endswith(name):
                write_text(path, "half a fi", encoding="utf-8")
                raise OSError(errno.ENOSPC, "No space left on device")
            return write_text(path, *args, **options)

        def tensors(content, path, **options):
            if path.as_posix().endswith(name):
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
            save_file(content, path, **options)

        monkeypatch.setattr(Path, "write_text", text)
        monkeypatch.setattr(weights, "save_file", tensors)

    return make_full


def assert_reports_full_disk(caught, folder):
    assert str(caught.value) == (
        f"{folder} could not be written (No space left on device); nothing was changed: make room, or choose another "
        "folder"
    )
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_is_reported_in_one_line_and_keeps_the_old_bundle(bundle, folder, fill_disk, name):
    before = load(folder).student.vocab_embed.embedding
    fill_disk(name)
    other = Bundle(student=bundle.teacher, tokenizer=bundle.tokenizer)
    with pytest.raises(DidiError) as caught:
        save(other, folder)
    assert_reports_full_disk(caught, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    assert torch.equal(load(folder).student.vocab_embed.embedding, before)
    with pytest.raises(DidiError) as caught:
        save(other, folder.with_name("new"))
    assert_reports_full_disk(caught, folder.with_name("new"))
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_full_disk_is_reported_in_one_line_by_an_export(bundle, tmp_path, fill_disk, name):
    fill_disk(name)
    plain = Bundle(teacher=bundle.teacher, tokenizer=bundle.tokenizer)
    with pytest.raises(DidiError) as caught:
        export(plain, tmp_path / "public")
    assert_reports_full_disk(caught, tmp_path / "public")
    assert not list(tmp_path.iterdir())


def test_system_errors_of_safetensors_are_reported_in_one_line(bundle, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes; the weights have more
    try:
        with pytest.raises(DidiError, match=r"could not be written \(File too large\); nothing was changed"):
            save(bundle, tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_folder_below_a_file_raises_the_error_of_the_system(bundle, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"ile exists|ot a directory"):  # commands end with status 2: ``apps.terminal``
        save(bundle, tmp_path / "file" / "bundle")
