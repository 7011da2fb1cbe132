import pytest

from didi.files import staged_folder, write_atomically


@pytest.mark.parametrize("content", ["β\n", b"\xff\r\n"])
def test_a_file_is_written_in_a_folder_that_is_made(tmp_path, content):
    path = write_atomically(tmp_path / "made" / "file", content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [one.name for one in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


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
    assert [one.name for one in folder.iterdir()] == ["old"]
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]
