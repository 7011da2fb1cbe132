import hashlib
from dataclasses import replace

import pytest

from didi.data import assets
from didi.data.assets import ASSETS, Asset


class Registry:
    """Replaces the client of a registry: serves one archive and counts downloads."""

    def __init__(self, data):
        self.data = data
        self.num_downloads = 0

    def __call__(self, asset, downloads):
        self.num_downloads += 1
        path = downloads / asset.archive
        path.write_bytes(self.data)
        return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Folder of an empty cache, which the test uses."""
    monkeypatch.setenv("DIDI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def serve(monkeypatch):
    """Function that makes bytes the archive of the asset ``tiny`` and returns the registry that serves it."""

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
