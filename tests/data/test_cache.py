"""Damaged cache folders are detected and rebuilt; disk errors are reported in one line and leave no files."""

import errno
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from didi.apps.assets import run_assets
from didi.data import assets, text
from didi.data.assets import fetch, is_cached, verify
from didi.data.cache import MANIFEST, cached_folder, damage, made_folder, made_folders
from didi.data.text import ROWS, prepare_text
from didi.errors import DidiError

from .made_archives import FILES, zip_bytes

pytestmark = pytest.mark.usefixtures("cache")


def flip_a_bit(path, position=-1):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


DAMAGES = {"flipped": flip_a_bit, "cut": cut, "gone": Path.unlink}


# Folders that can be made again


@pytest.fixture
def made(tmp_path):
    """A folder to be built, the function that builds it, and the list of its calls."""
    calls = []

    def make(folder):
        calls.append(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(b"content")

    return tmp_path / "made", make, calls


@pytest.mark.parametrize("spoil", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["deep/file", MANIFEST])
def test_a_damaged_folder_is_made_again_with_a_warning(made, caplog, name, spoil):
    folder, make, calls = made
    assert [made_folder(folder, make) for _ in range(2)] == [folder] * 2
    assert len(calls) == 1
    spoil(folder / name)
    with caplog.at_level(logging.WARNING):
        made_folder(folder, make)
    assert len(calls) == 2
    assert damage(folder) is None
    (record,) = caplog.records
    assert str(folder / name) in record.message
    assert "is made again" in record.message


@pytest.mark.parametrize("content", ["[1]", "{}", '{"members": 3}', '{"members": {"a": {"bytes": "1"}}}', "[" * 10**5])
def test_an_invalid_manifest_is_reported_as_damage(made, content):
    folder, make, _ = made
    made_folder(folder, make)
    (folder / MANIFEST).write_text(content)
    assert "is missing or damaged" in damage(folder)


@pytest.mark.parametrize("has_invalid_manifest", [False, True])
def test_a_folder_without_a_valid_manifest_is_made_again_and_the_warning_gives_the_reason(
    made, caplog, has_invalid_manifest
):
    folder, make, calls = made
    folder.mkdir()
    (folder / "rows").write_bytes(b"content")
    if has_invalid_manifest:
        (folder / MANIFEST).write_text("{")
    with caplog.at_level(logging.WARNING):
        made_folder(folder, make)
    assert len(calls) == 1
    (record,) = caplog.records
    reason = "is missing or damaged; " if has_invalid_manifest else "is missing, as in folders of earlier versions; "
    assert record.message.endswith(f"{reason}{folder} is made again")


def test_a_folder_that_another_process_made_is_kept(made, monkeypatch):
    folder, make, calls = made
    made_folder(folder, make)
    states = iter(["damaged", None])
    monkeypatch.setattr("didi.data.cache.damage", lambda _: next(states))
    made_folder(folder, make)
    assert len(calls) == 1


def test_folders_without_digests_are_not_listed(made, tmp_path):
    folder, make, _ = made
    made_folder(folder, make)
    (tmp_path / "older").mkdir()
    assert made_folders(tmp_path) == [folder]


# Packed corpora


@pytest.mark.parametrize("spoil", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_packed_corpus_is_made_again(tmp_path, cache, spoil):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"number {number} of a few short documents" for number in range(60)))
    first = prepare_text(str(corpus), length=8, vocab_size=280)
    (rows,) = cache.rglob(ROWS)
    content = rows.read_bytes()
    spoil(rows)
    again = prepare_text(str(corpus), length=8, vocab_size=280)
    assert torch.equal(first.train, again.train)
    assert rows.read_bytes() == content


# Assets


@pytest.mark.parametrize("spoil", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["deep/b.txt", MANIFEST])
def test_a_damaged_asset_is_detected_and_fetched_again(serve, name, spoil):
    registry = serve(zip_bytes(FILES))
    folder = fetch("tiny")
    spoil(folder / name)
    with pytest.raises(DidiError, match=r"; `didi assets fetch tiny` downloads 'tiny' again$") as caught:
        verify("tiny")
    assert str(folder / name) in str(caught.value)
    assert fetch("tiny") == folder
    verify("tiny")
    assert registry.num_downloads == 2


@pytest.mark.parametrize("content", ["[1]", "{}", '{"members": {"a.txt": 3}}', "null", "{"])
def test_a_damaged_manifest_is_reported_in_one_line(serve, content):
    serve(zip_bytes(FILES))
    (fetch("tiny") / MANIFEST).write_text(content)
    assert not is_cached("tiny")
    with pytest.raises(DidiError, match="is missing or damaged; `didi assets fetch tiny`"):
        verify("tiny")


def test_verify_without_names_reports_every_damaged_folder(serve, cache, capsys):
    serve(zip_bytes(FILES))
    folder, packed = fetch("tiny"), cache / "text" / "abc"
    copy = folder.with_name(f"{folder.name}-copy")
    for path in (packed, copy):
        made_folder(path, lambda staging: (staging / "file").write_bytes(b"content"))
    run_assets(["verify"])
    output = capsys.readouterr().out
    assert "tiny: every file is as pinned" in output
    assert f"{packed}: every file is as made" in output
    cut(folder / "a.txt")
    flip_a_bit(packed / "file")
    with pytest.raises(DidiError) as caught:
        run_assets(["verify"])
    assert str(folder / "a.txt") in str(caught.value)
    assert f"{packed / 'file'} must have SHA-256" in str(caught.value)
    assert "\n" not in str(caught.value)
    fetch("tiny")
    flip_a_bit(copy / "file")
    with pytest.raises(DidiError, match=f"{copy / 'file'} must have SHA-256 .* makes it again"):
        verify("tiny")


def test_a_cache_path_that_is_a_file_is_reported_in_one_line(serve, cache):
    serve(zip_bytes(FILES))
    cache.write_text("")
    assert not is_cached("tiny")
    with pytest.raises(DidiError, match="only a fetched asset can be verified"):
        verify("tiny")
    with pytest.raises(DidiError, match=r"could not be written: .*; name another place with DIDI_CACHE"):
        fetch("tiny")


def test_a_read_only_cache_serves_present_assets_and_names_the_remedy(serve, cache, monkeypatch):
    serve(zip_bytes(FILES))
    folder = fetch("tiny")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(cache))

    monkeypatch.setattr("didi.files.FileLock", refuse)
    assert fetch("tiny") == folder
    run_assets(["verify", "tiny"])
    flip_a_bit(folder / "a.txt")
    with pytest.raises(DidiError, match=r"Read-only file system.*; name another place with DIDI_CACHE"):
        fetch("tiny")


def test_a_full_disk_is_reported_in_one_line_and_leaves_no_files(serve, cache, monkeypatch):
    serve(zip_bytes(FILES))
    full = OSError(errno.ENOSPC, "No space left on device")

    class FullFile:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def tell(self):
            return 0

        def write(self, _):
            raise full

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r", **more: FullFile() if mode == "xb" else opened(path, mode))
    with pytest.raises(
        DidiError, match=r"could not be written: .*No space left on device; name another place"
    ) as caught:
        fetch("tiny")
    assert "\n" not in str(caught.value)
    assert files_in(cache) == []


def test_a_full_disk_while_a_corpus_is_packed_leaves_no_files(tmp_path, cache, monkeypatch):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"number {number} of a few short documents" for number in range(60)))

    def save_file(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(text, "save_file", save_file)
        with pytest.raises(
            DidiError, match=r"No space left on device \(os error 28\); name another place with DIDI_CACHE"
        ):
            prepare_text(str(corpus), length=8, vocab_size=280)
    assert files_in(cache) == []
    prepare_text(str(corpus), length=8, vocab_size=280)


def test_a_failed_repair_keeps_the_old_folder(made, monkeypatch):
    folder, make, _ = made
    made_folder(folder, make)
    flip_a_bit(folder / "deep" / "file")

    def fail(staging):
        (staging / "half").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DidiError, match="No space left"):
        made_folder(folder, fail)
    assert (folder / "deep" / "file").is_file()
    assert not (folder / "half").exists()


def test_the_lock_of_a_cached_folder_is_a_file_beside_it(tmp_path):
    with cached_folder(tmp_path / "one"):
        assert (tmp_path / ".one.lock").exists()


def test_assets_record_their_selection(serve):
    serve(zip_bytes(FILES))
    recorded = json.loads((fetch("tiny") / MANIFEST).read_text())
    assert recorded["selection"] == assets._selection(assets.ASSETS["tiny"])
