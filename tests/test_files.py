"""Files and folders are written completely or not at all; values that JSON lacks become null."""

import json
import math
import re

import pytest

from didi.files import json_text, output_folder, staged_folder, write_atomically


@pytest.mark.parametrize("content", ["β\n", b"\xff\r\n"])
def test_a_file_is_written_with_its_folder_and_no_other_file(tmp_path, content):
    path = write_atomically(tmp_path / "made" / "file", content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_an_error_removes_the_new_folders_that_are_empty(tmp_path):
    (tmp_path / "old").mkdir()
    for folder, files, left in (("new/newer", [], set()), ("old", [], set()), ("new/newer", ["a"], {"new"})):
        with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / folder):  # noqa: PT012
            for name in files:
                (tmp_path / folder / name).touch()
            raise KeyboardInterrupt
        assert {path.name for path in tmp_path.iterdir()} == {"old"} | left
    with output_folder(tmp_path / "kept"):
        pass
    assert (tmp_path / "kept").is_dir()
    with output_folder(None):
        pass


def test_a_folder_that_cannot_be_created_is_an_error_at_once(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    for name in ("file", "file/new", "link", "link/new"):
        with pytest.raises(OSError, match=re.escape(str(tmp_path))), output_folder(tmp_path / name):
            pytest.fail("the block ran")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_a_folder_that_is_not_writable_is_an_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError) as caught, output_folder(tmp_path / "new"):
        pytest.fail("the block ran")
    assert caught.value.filename == str(tmp_path / "new")
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_moved_into_place_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    with staged_folder(folder) as staging:
        (staging / "old").touch()
    replace = type(folder).replace

    def refuse_new(path, target):
        if path.name == "folder" and path != folder:
            raise OSError("no permission")
        return replace(path, target)

    monkeypatch.setattr(type(folder), "replace", refuse_new)

    def fill():
        with staged_folder(folder) as staging:
            (staging / "new").touch()

    with pytest.raises(OSError, match="no permission"):
        fill()
    assert [file.name for file in folder.iterdir()] == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_values_that_json_lacks_are_null():
    value = {
        "a": math.nan,
        "b": [1.5, math.inf, (-math.inf, "NaN")],
        "c": {"d": math.nan, "e": None},
        "f": 2,
        "g": True,
    }
    expected = {"a": None, "b": [1.5, None, [None, "NaN"]], "c": {"d": None, "e": None}, "f": 2, "g": True}

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    assert json.loads(json_text(value), parse_constant=refuse) == expected
    assert json_text({"a": "β"}, indent=1, ensure_ascii=False) == '{\n "a": "β"\n}'
