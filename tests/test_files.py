"""Files and folders are written completely or not at all; values that JSON lacks become null."""

import json
import math

import pytest

from didi.files import check_folder, json_text, staged_folder, write_atomically


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


def test_a_folder_that_cannot_be_written_is_refused_and_none_is_created(tmp_path, monkeypatch):
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "newer")
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "new"):
        with pytest.raises(NotADirectoryError, match="file"):
            check_folder(path)

    def fail(dir):
        assert dir == tmp_path
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(PermissionError):
        check_folder(tmp_path / "new" / "newer")


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
