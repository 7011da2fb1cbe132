"""Fuzzing of the readers of files and names with hostile inputs; see ``reliability``."""

import io
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
import yaml
from reliability_faults import processes, small_run

from didi.apps.settings import resolve
from didi.apps.train import command_of
from didi.data import archives
from didi.data.catalogue import Asset
from didi.errors import DidiError
from didi.methods.didi_settings import DistillConfig
from didi.models.bundle import Bundle, load, save
from didi.models.foreign import read_weights
from didi.recipes import DISTILL
from didi.training.checkpoint import load_latest, save_checkpoint

CPU = torch.device("cpu")
SECONDS_AN_INPUT = 20
MEMORY = 2**31  # bytes that reading a hostile file may allocate in addition to the memory of the process
HOSTILE = [
    b"!!python/object/apply:os.system ['touch escaped']",
    b"&a [*a, *a]",
    b"<<: *a",
    b"../../escaped",
    b"/etc/passwd",
    b"\x00",
    b"9" * 5000,
    b"-1",
    b"1e999",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\xff\xfe",
    b"null",
    b"true",
    b'"' * 7,
    b"2147483648",
    b"99999999999999999999",
    b"nan",
    "\u202e".encode(),
]


def mutated(content: bytes, draws: random.Random) -> bytes:
    """``content`` with one to four random changes: flipped bits, cuts, copies, inserted hostile strings."""
    for _ in range(draws.randint(1, 4)):
        at, end = sorted(draws.randrange(len(content) + 1) for _ in range(2)) if content else (0, 0)
        end = min(end, at + draws.choice([1, 4, 64, 4096]))
        kind = draws.randrange(6)
        if kind == 0 and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << draws.randrange(8)]) + content[at + 1 :]
        elif kind == 1:
            content = content[:at] + content[end:]
        elif kind == 2:
            content = content[:at] + content[at:end] * draws.choice([2, 3, 50]) + content[end:]
        elif kind == 3:
            content = content[:at]
        else:
            content = content[:at] + draws.choice(HOSTILE) + content[end:]
    return content


class BundleFile:
    """A bundle with one hostile file."""

    def __init__(self, name: str, folder: Path) -> None:
        self.path = folder / "bundle"
        bundle = load("markov")
        save(Bundle(teacher=bundle.teacher, tokenizer=load("tiny-news").tokenizer), self.path)
        self.file = self.path / name
        content = self.file.read_bytes()
        # Only the header of a safetensors file is interpreted, so only the header is mutated.
        self.content = content
        self.head = int.from_bytes(content[:8], "little") + 8 if name.endswith(".safetensors") else len(content)

    def __call__(self, draws: random.Random) -> None:
        self.file.write_bytes(mutated(self.content[: self.head], draws) + self.content[self.head :])
        load(self.path)


class ConfigFile:
    """A hostile file of settings of a run."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "config.yaml"
        self.content = yaml.safe_dump(asdict(small_run()), sort_keys=False).encode()

    def __call__(self, draws: random.Random) -> None:
        self.file.write_bytes(mutated(self.content, draws))
        resolve("distill", command_of(DistillConfig(), "Distil."), DISTILL, ["--config", str(self.file)])


class Pickled:
    """A hostile pickled training checkpoint of other code."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "last.ckpt"
        torch.save({"state_dict": {"backbone.x": torch.ones(8)}, "ema": {"shadow_params": [torch.ones(8)]}}, self.file)
        self.content = self.file.read_bytes()

    def __call__(self, draws: random.Random) -> None:
        self.file.write_bytes(mutated(self.content, draws))
        read_weights(self.file)


class OwnCheckpoint:
    """A hostile checkpoint of a run of didi."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkpoints"
        self.folder.mkdir()
        self.file = self.folder / "step-00000001.safetensors"
        save_checkpoint(self.folder, 1, {"weights": [torch.ones(8), torch.zeros(2, 2)], "step": 1}, keep=1)
        self.content = self.file.read_bytes()

    def __call__(self, draws: random.Random) -> None:
        self.file.write_bytes(mutated(self.content, draws))
        load_latest(self.folder)


MEMBER_NAMES = [
    "data.txt",
    "../escaped",
    "/escaped",
    "a/../../escaped",
    "..\\escaped",
    "C:\\escaped",
    "",
    ".",
    "data.txt/",
]


class Archive:
    """A hostile archive of the asset cache, with path traversal, links, archive bombs or damage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = folder / "deep" / "target"
        archives.MAX_EXTRACTED_BYTES = 2**20  # lowered in this process only, so that small archives can be bombs

    def __call__(self, draws: random.Random) -> None:
        shutil.rmtree(self.target, ignore_errors=True)
        self.target.mkdir(parents=True)
        path = self.folder / "archive"
        stream = io.BytesIO()
        names = [draws.choice(MEMBER_NAMES) for _ in range(draws.randint(1, 3))]
        size = draws.choice([0, 10, 2**22])
        if draws.random() < 0.5:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in dict.fromkeys(names):
                    info = zipfile.ZipInfo(name or "x")
                    if draws.random() < 0.2:
                        info.external_attr = 0o120777 << 16  # a link
                    archive.writestr(info, bytes(size))
        else:
            with tarfile.open(fileobj=stream, mode=draws.choice(["w", "w:gz", "w:bz2"])) as archive:
                for name in names:
                    info = tarfile.TarInfo(name)
                    info.size = size
                    if draws.random() < 0.3:
                        info.type, info.size = draws.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]), 0
                        info.linkname = "../../escaped"
                    archive.addfile(info, io.BytesIO(bytes(info.size)))
        content = stream.getvalue()
        path.write_bytes(mutated(content, draws) if draws.random() < 0.5 else content)
        asset = Asset(
            name="fuzz",
            registry="pypi",
            requirement="fuzz==1",
            archive="archive",
            sha256="0" * 64,
            root="",
            members=("*",),
            summary="",
            licence="",
        )
        archives.extract(asset, path, self.target)


class HubName:
    """A hostile name of a model, such as a path."""

    PARTS = (
        "..",
        ".",
        "a",
        "owner",
        "na me",
        "\\",
        "%2e%2e",
        "~",
        "$HOME",
        "\n",
        "\x00",
        "é",
        "x" * 300,
        "-",
        "@main",
        "",
    )

    def __init__(self, folder: Path) -> None:
        del folder
        huggingface_hub.constants.HF_HUB_OFFLINE = True  # the names must not be requested from the Hub

    def __call__(self, draws: random.Random) -> None:
        load(draws.choice(["/", "//", "@", ""]).join(draws.choice(self.PARTS) for _ in range(draws.randint(1, 3))))


KINDS: dict[str, Callable[[Path], Callable[[random.Random], None]]] = {
    "bundle.yaml": lambda folder: BundleFile("bundle.yaml", folder),
    "config.json": lambda folder: BundleFile("teacher/config.json", folder),
    "safetensors header": lambda folder: BundleFile("teacher/model.safetensors", folder),
    "tokenizer.json": lambda folder: BundleFile("tokenizer.json", folder),
    "run settings (YAML)": ConfigFile,
    "foreign checkpoint (pickle)": Pickled,
    "own checkpoint": OwnCheckpoint,
    "archive of an asset": Archive,
    "name of a model": HubName,
}


def fuzz(kind: str, num: int, folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """Read ``num`` hostile inputs in a separate process, and count the outcomes.

    ``refused`` counts inputs refused with a ``DidiError``, ``read`` inputs read without an error; ``escapes`` counts
    other errors, timeouts, excessive memory, files written outside the folder, and crashes of the process. ``first``
    describes the first escape.
    """
    context = processes()
    receive, send = context.Pipe(duplex=False)
    running = context.Process(target=_fuzz, args=(kind, num, folder, seed, send))
    running.start()
    send.close()
    try:
        outcomes: dict[str, Any] = receive.recv()
    except EOFError:
        outcomes = {"inputs": num, "refused": 0, "read": 0, "escapes": num, "first": "the process died"}
    running.join()
    return outcomes


def _fuzz(kind: str, num: int, folder: Path, seed: int, send: Any) -> None:
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    inside = folder / "inside" / "inner"
    inside.mkdir(parents=True)
    os.chdir(inside)
    read = KINDS[kind](inside)
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY, pages + MEMORY))
    outcomes: dict[str, Any] = Counter(inputs=num, refused=0, read=0, escapes=0)
    first = ""

    def hang(*_: object) -> None:
        raise TimeoutError("took too long")

    signal.signal(signal.SIGALRM, hang)
    for number in range(num):
        draws = random.Random(f"{seed}-{kind}-{number}")
        signal.alarm(SECONDS_AN_INPUT)
        try:
            read(draws)
            outcomes["read"] += 1
        except DidiError:
            outcomes["refused"] += 1
        except BaseException as error:  # panics of Rust libraries derive from BaseException
            outcomes["escapes"] += 1
            first = first or f"input {number}: {type(error).__name__}: {str(error)[:200]}"
        finally:
            signal.alarm(0)
    strays = [str(path) for path in folder.rglob("*escaped*") if not path.is_relative_to(inside / "deep" / "target")]
    strays += [str(path) for path in folder.iterdir() if path.name != "inside"]
    if strays or Path("/escaped").exists():
        outcomes["escapes"] += len(strays) or 1
        first = first or f"a file outside: {strays[:1]}"
    send.send(dict(outcomes) | {"first": first})
