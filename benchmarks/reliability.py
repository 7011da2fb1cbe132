"""The figures of docs/reliability.md: faults injected into runs, and hostile files read.

    python benchmarks/reliability.py measure --out FILE [--kills 20] [--inputs 12000]
    python benchmarks/reliability.py page [--from FILE]

``measure`` kills, cuts, flips and fuzzes (some 20 minutes on one core); ``page`` renews the tables of the page.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
import yaml
from pages import DOCS, renew, write_json

from didi.apps.settings import resolve
from didi.apps.train import command_of, distill_run
from didi.data import archives
from didi.data.catalogue import Asset
from didi.errors import DidiError
from didi.evaluation.row import machine_name
from didi.files import write_atomically
from didi.markdown import markdown_table
from didi.methods.didi_settings import DistillConfig
from didi.models.bundle import Bundle, load, save
from didi.models.foreign import read_weights
from didi.recipes import DISTILL
from didi.training.checkpoint import PATTERN, load_latest, save_checkpoint
from didi.training.loop import Interrupted, RunFolder

STORED = DOCS / "results" / "reliability.json"
CPU = torch.device("cpu")
SECONDS_AN_INPUT = 20
MEMORY = 2**31  # that reading a hostile file may take beside what the process has


# ---- faults ---------------------------------------------------------------------------------------------------- #


def small_run(num_steps: int = 12) -> DistillConfig:
    """A real distillation in which everything happens within seconds."""
    base = DISTILL["markov"]
    loop = replace(
        base.loop,
        steps=num_steps,
        batch_size=4,
        validate_every=5,
        validation_sequences=8,
        checkpoint_every=1,
        log_every=1,  # else a line's mean begins where the run was resumed
    )
    return replace(base, loop=loop, discriminator=replace(base.discriminator, warmup_steps=3))


def work(config: DistillConfig, path: Path) -> None:
    """Begin the run or go on with it; quiet."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the life of the process
    try:
        distill_run(config, RunFolder(path), resume=True, device=CPU)
    except Interrupted:
        sys.exit(130)


def processes() -> Any:
    """A context whose processes begin at once, forked from one that has read the library."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["didi.apps.train"])
    return context


def process(config: DistillConfig, path: Path) -> Any:
    return processes().Process(target=work, args=(config, path))


def finished(config: DistillConfig, path: Path) -> Path:
    """Let the run come to its end."""
    running = process(config, path)
    running.start()
    running.join()
    if running.exitcode:
        raise RuntimeError(f"the run in {path} ended with status {running.exitcode}")
    return path


def is_same(one: Path, other: Path, *, has_log: bool = True) -> bool:
    """Whether two runs left the same bundle, byte for byte, and the same figures but for their speed."""
    files = [sorted(p.relative_to(path / "bundle") for p in (path / "bundle").rglob("*.*")) for path in (one, other)]
    if files[0] != files[1]:
        return False
    logs = [
        [json.loads(line) | {"tokens_per_second": 0} for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (one, other)
    ]
    return (logs[0] == logs[1] or not has_log) and all(
        (one / "bundle" / file).read_bytes() == (other / "bundle" / file).read_bytes() for file in files[0]
    )


def killed(num_kills: int, folder: Path, *, num_steps: int = 12, seed: int = 0) -> dict[str, int]:
    """Kill runs with SIGKILL at random moments, each begun anew, and let them go on: how many ended as an unkilled one.

    Moments that come after a run's end do not count; another is drawn.
    """
    config, draws = small_run(num_steps), random.Random(seed)
    begin = time.perf_counter()
    straight = finished(config, folder / "straight")
    seconds = time.perf_counter() - begin
    found = Counter(runs=0, recovered=0)
    while found["runs"] < num_kills:
        path = folder / f"killed-{found['runs']}"
        running = process(config, path)
        running.start()
        running.join(draws.uniform(0, seconds))
        if running.exitcode is None:
            running.kill()
            running.join()
            found["runs"] += 1
            found["recovered"] += is_same(straight, finished(config, path))
        shutil.rmtree(path, ignore_errors=True)
    return dict(found)


def damaged(num: int, folder: Path, *, seed: int = 0) -> dict[str, int]:
    """Cut or flip a bit of the newest checkpoint: how often the one before it was taken, or nothing had changed."""
    draws = random.Random(seed)
    run = finished(replace(small_run(), loop=replace(small_run().loop, steps=4)), folder / "damaged")
    newest = sorted((run / "checkpoints").glob(PATTERN))[-1]
    content, found = newest.read_bytes(), Counter(runs=0, recovered=0)
    last, before = int(newest.stem[5:]), int(newest.stem[5:]) - 1
    for _ in range(num):
        if draws.random() < 0.5:
            newest.write_bytes(content[: draws.randrange(len(content))])
            is_whole = False
        else:
            position = draws.randrange(len(content))
            newest.write_bytes(
                content[:position] + bytes([content[position] ^ 1 << draws.randrange(8)]) + content[position + 1 :]
            )
            is_whole = chr(content[position]) == " "  # padding of the header
        latest = load_latest(run / "checkpoints")
        found["runs"] += 1
        found["recovered"] += latest is not None and latest[0] in ((last, before) if is_whole else (before,))
    return dict(found)


def terminated(num: int, folder: Path, *, seed: int = 0) -> dict[str, float]:
    """SIGTERM, as a scheduler sends it, at random moments: state saved, the longest wait, and the same end."""
    config, draws = small_run(), random.Random(seed)
    straight = finished(config, folder / "untouched")
    found: dict[str, float] = {"runs": 0, "recovered": 0, "seconds": 0.0}
    while found["runs"] < num:
        path = folder / f"terminated-{found['runs']:.0f}"
        running = process(config, path)
        running.start()
        while running.exitcode is None and not any((path / "checkpoints").glob(PATTERN)):  # it trains
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.5))
        if running.exitcode is None:
            begin = time.perf_counter()
            os.kill(running.pid, signal.SIGTERM)
            running.join()
            if running.exitcode == 130:
                found["seconds"] = max(found["seconds"], time.perf_counter() - begin)
                found["runs"] += 1
                # The log has a line more, of the step at which the run was stopped.
                found["recovered"] += is_same(straight, finished(config, path), has_log=False)
        shutil.rmtree(path, ignore_errors=True)
    return found


# ---- hostile input --------------------------------------------------------------------------------------------- #

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
    """One to four changes: bits, cuts, copies, hostile words."""
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
    """A bundle one of whose files is hostile."""

    def __init__(self, name: str, folder: Path) -> None:
        self.path = folder / "bundle"
        bundle = load("markov")
        save(Bundle(teacher=bundle.teacher, tokenizer=load("tiny-news").tokenizer), self.path)
        self.file = self.path / name
        content = self.file.read_bytes()
        # The header of safetensors is what is interpreted; most of the tensors are left out.
        self.content = content
        self.head = int.from_bytes(content[:8], "little") + 8 if name.endswith(".safetensors") else len(content)

    def __call__(self, draws: random.Random) -> None:
        self.file.write_bytes(mutated(self.content[: self.head], draws) + self.content[self.head :])
        load(self.path)


class ConfigFile:
    """Settings of a run."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "config.yaml"
        self.content = yaml.safe_dump(asdict(small_run()), sort_keys=False).encode()

    def __call__(self, draws: random.Random) -> None:
        self.file.write_bytes(mutated(self.content, draws))
        resolve("distill", command_of(DistillConfig(), "Distil."), DISTILL, ["--config", str(self.file)])


class Pickled:
    """A training checkpoint of other code."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "last.ckpt"
        torch.save({"state_dict": {"backbone.x": torch.ones(8)}, "ema": {"shadow_params": [torch.ones(8)]}}, self.file)
        self.content = self.file.read_bytes()

    def __call__(self, draws: random.Random) -> None:
        self.file.write_bytes(mutated(self.content, draws))
        read_weights(self.file)


class OwnCheckpoint:
    """A checkpoint of a run of ours."""

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
    """An archive of the asset cache: wrong names, links, bombs, damage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = folder / "deep" / "target"
        archives.MAX_EXTRACTED_BYTES = 2**20  # of this process alone: a bomb need not be large to be one

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
    """A model's name that means to be a path, or worse."""

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
        huggingface_hub.constants.HF_HUB_OFFLINE = True  # no name here is to be asked for

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
    """Read ``num`` hostile inputs in a process of its own; what became of them.

    ``refused`` ended in one clear line, ``read`` in a value; ``escapes`` are other errors, hangs, files outside the
    folder, too much memory, and a crash of the process.
    """
    context = processes()
    receive, send = context.Pipe(duplex=False)
    running = context.Process(target=_fuzz, args=(kind, num, folder, seed, send))
    running.start()
    send.close()
    try:
        found: dict[str, Any] = receive.recv()
    except EOFError:
        found = {"inputs": num, "refused": 0, "read": 0, "escapes": num, "first": "the process died"}
    running.join()
    return found


def _fuzz(kind: str, num: int, folder: Path, seed: int, send: Any) -> None:
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    inside = folder / "inside" / "inner"
    inside.mkdir(parents=True)
    os.chdir(inside)
    read = KINDS[kind](inside)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY, pages + MEMORY))
    found: dict[str, Any] = Counter(inputs=num, refused=0, read=0, escapes=0)
    first = ""

    def hang(*_: object) -> None:
        raise TimeoutError("took too long")

    signal.signal(signal.SIGALRM, hang)
    for number in range(num):
        draws = random.Random(f"{seed}-{kind}-{number}")
        signal.alarm(SECONDS_AN_INPUT)
        try:
            read(draws)
            found["read"] += 1
        except DidiError:
            found["refused"] += 1
        except BaseException as error:  # the Rust side panics so
            found["escapes"] += 1
            first = first or f"input {number}: {type(error).__name__}: {str(error)[:200]}"
        finally:
            signal.alarm(0)
    strays = [str(path) for path in folder.rglob("*escaped*") if not path.is_relative_to(inside / "deep" / "target")]
    strays += [str(path) for path in folder.iterdir() if path.name != "inside"]
    if strays or Path("/escaped").exists():
        found["escapes"] += len(strays) or 1
        first = first or f"a file outside: {strays[:1]}"
    send.send(dict(found) | {"first": first})


# ---- the page -------------------------------------------------------------------------------------------------- #


def measure(args: argparse.Namespace) -> None:
    found: dict[str, Any] = {"machine": machine_name(), "faults": {}, "inputs": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, inject in (
            ("SIGKILL at a random moment", lambda: killed(args.kills, folder / "kill")),
            ("newest checkpoint cut or a bit flipped", lambda: damaged(args.kills * 10, folder / "damage")),
            ("SIGTERM at a random moment of training", lambda: terminated(args.kills, folder / "term")),
        ):
            print(name, flush=True)
            found["faults"][name] = inject()
            print(found["faults"][name], flush=True)
        for kind in KINDS:
            (folder / "fuzz" / kind.replace("/", "-")).mkdir(parents=True)
            found["inputs"][kind] = fuzz(kind, args.inputs // len(KINDS), folder / "fuzz" / kind.replace("/", "-"))
            print(kind, found["inputs"][kind], flush=True)
    write_json(args.out, found)


def page(args: argparse.Namespace) -> None:
    if args.source:
        write_atomically(STORED, args.source.read_bytes())
    found = json.loads(STORED.read_text())
    faults = []
    for name, row in found["faults"].items():
        note = f"; saved within {row['seconds']:.1f} s" if "seconds" in row else ""
        faults.append([name, f"{row['runs']:.0f}", f"{row['recovered']:.0f}{note}"])
    inputs = []
    total: Counter[str] = Counter()
    for kind, row in found["inputs"].items():
        cells = {name: row[name] for name in ("inputs", "refused", "read", "escapes")}
        total.update(cells)
        inputs.append([kind, *(f"{value:,}" for value in cells.values())])
    inputs.append(["**all**", *(f"{total[name]:,}" for name in ("inputs", "refused", "read", "escapes"))])
    lines = markdown_table(["fault", "runs", "ended as if nothing had happened"], faults)
    header = ["hostile input", "inputs", "refused in one line", "read as valid", "escapes"]
    lines += ["", *markdown_table(header, inputs)]
    lines.append(f"\n{found['machine']}.")
    renew(DOCS / "reliability.md", "reliability.py", lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure")
    command.set_defaults(run=measure)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--kills", type=int, default=20)
    command.add_argument("--inputs", type=int, default=12_000)
    command = commands.add_parser("page")
    command.set_defaults(run=page)
    command.add_argument("--from", dest="source", type=Path)
    args = parser.parse_args(words)
    args.run(args)


if __name__ == "__main__":
    main()
