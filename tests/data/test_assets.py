"""Assets: pinned archives, their extraction and verification, and fetches that fail."""

import hashlib
import inspect
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from didi.data import archives, assets
from didi.data.assets import ASSETS, fetch, is_cached, verify
from didi.errors import DidiError, UsageError

from .made_archives import FILES, ar_bytes, tar_bytes, zip_bytes

pytestmark = pytest.mark.usefixtures("cache")


def leftovers(cache):
    """All files in the cache except locks."""
    return [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("name", ASSETS)
def test_assets_are_pinned(name):
    asset = ASSETS[name]
    assert asset.name == name
    assert len(asset.sha256) == 64
    assert int(asset.sha256, 16)
    assert asset.registry in assets.CLIENTS
    assert "=" in asset.requirement or "@" in asset.requirement[1:]
    assert asset.licence


def test_the_source_contains_no_url():
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


def test_a_second_fetch_downloads_nothing(serve):
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


def test_an_archive_that_unpacks_to_too_many_bytes_is_refused(serve, cache, monkeypatch):
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


def test_an_archive_that_the_user_copied_is_not_downloaded(serve, cache):
    registry = serve(zip_bytes(FILES))
    copied = cache / "archives" / "tiny-1.whl"
    copied.parent.mkdir(parents=True)
    copied.write_bytes(b"half of it")
    with pytest.raises(DidiError, match="put the right archive at"):
        fetch("tiny")
    copied.write_bytes(registry.data)
    fetch("tiny")
    assert registry.num_downloads == 0
    assert copied.exists()


def test_verify_detects_a_changed_member_and_fetch_repairs_a_truncated_one(serve):
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


def test_a_folder_extracted_with_other_members_is_fetched_again(serve):
    serve(zip_bytes(FILES), members=("a.txt",))
    assert not (fetch("tiny") / "deep").exists()
    serve(zip_bytes(FILES))
    assert (fetch("tiny") / "deep" / "b.txt").exists()


@pytest.mark.slow
def test_concurrent_fetches_agree(cache):
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


def test_an_unknown_name_is_refused_with_the_nearest_name():
    for function in (fetch, verify, is_cached):
        with pytest.raises(UsageError, match="got 'newz'; did you mean 'news'"):
            function("newz")
