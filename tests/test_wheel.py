"""Wheel and source archive have all their files; a fresh environment with the wheel serves a bundled model."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest

from didi.models.bundle import bundled_names

pytestmark = [pytest.mark.network, pytest.mark.large]
ROOT = Path(__file__).parents[1]
BUNDLES = ROOT / "src" / "didi" / "bundles"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the source archive, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True)
    return folder


@pytest.fixture(scope="module")
def installed(built):
    """Folder of the programs of an environment with only the wheel and its extra ``serve``."""
    (wheel,) = built.glob("didi_instruct-*.whl")
    subprocess.run([sys.executable, "-m", "venv", built / "venv"], check=True)
    programs = built / "venv" / ("Scripts" if os.name == "nt" else "bin")
    words = ["install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    constraints = ["--constraint", ROOT / "constraints.txt"]
    subprocess.run([programs / "python", "-m", "pip", *words, *constraints, f"{wheel}[serve]"], check=True)
    return programs


def test_the_wheel_has_bundles_page_types_and_licences_but_no_tests(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    stored = [file for name in bundled_names() for file in (BUNDLES / name).rglob("*") if file.is_file()]
    bundles = {f"didi/bundles/{file.relative_to(BUNDLES).as_posix()}" for file in stored}
    assert {"didi/bundles/prose/student/model.safetensors", "didi/bundles/exact/README.md"} <= bundles
    assert {"didi/py.typed", "didi/serving/static/index.html", "didi/serving/replay.html", *bundles} <= set(names)
    licences = [name.partition("/licenses/")[2] for name in names if "/licenses/" in name]
    assert sorted(licences) == ["LICENSE", "docs/licences.md"]
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_the_source_archive_has_tests_docs_and_licences(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    needed = {"LICENSE", "CITATION.cff", "constraints.txt", "tests/conftest.py", "docs/licences.md", "docs/index.md"}
    assert needed <= names


def test_a_fresh_environment_serves_a_bundled_model(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = [installed / "python", "-c", "import didi; print(didi.__file__)"]
    printed = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(printed.stdout.strip()).is_relative_to(installed.parent)
    command = [installed / "didi", "serve", "tiny-news", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = (re.search(r"running on (http://[\d.]+:\d+)", line) for line in server.stderr)
            url = next(filter(None, lines))[1]
            body = {"model": "tiny-news", "prompt": "The prime minister said", "max_tokens": 24, "seed": 1}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
            assert answer.status_code == 200
            assert len(answer.json()["choices"][0]["text"].split()) > 5
            assert "didi" in httpx.get(url, timeout=60).text
            assert httpx.get(f"{url}/page.js", timeout=60).status_code == 200
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
