"""The GPU job: stages one after the other, each in a separate process with a time limit.

    python benchmarks/gpu/run.py [--carried build/gpu] [--work build/gpu/work] [--out build/gpu/out] [--toy]
                                 [--stages tests=60 speed=90 teacher=270 autoregressive=50 student=150]

A stage that fails or exceeds its time does not stop the next stage. The job writes to ``--out``: ``results.json`` (all
results so far, also of earlier calls with the same ``--work``), ``log.txt`` and, with ``--return``, bundles as an
archive in parts of at most 15 MiB, which ``collect`` joins.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
DEFAULT = ("tests=60", "speed=90", "teacher=270", "autoregressive=50", "student=150")
PART_BYTES = 15 * 2**20
SHUTDOWN_SECONDS = 15  # time between SIGTERM, at the time limit of a stage, and SIGKILL


def environment(carried: Path) -> dict[str, str]:
    """Environment variables of the stages: the package from the checkout, and folders of caches."""
    paths = [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "DIDI_CACHE": str(carried.resolve() / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/didi-inductor"),
        "TOKENIZERS_PARALLELISM": "false",
        "JAXTYPING_DISABLE": "1",  # see tests/test_gpu.py
    }


def run_stage(name: str, seconds: float, args: argparse.Namespace, log: io.TextIOBase) -> dict[str, Any]:
    """Run one stage; returns its status, its time, and for tests the end of the output."""
    if name == "tests":
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/test_gpu.py", "-p", "no:cacheprovider", "-rA"]
        command += ["--durations=10"]
    else:
        command = [sys.executable, str(HERE / "stages.py"), name, "--seconds", str(seconds)]
        command += ["--carried", str(args.carried.resolve()), "--work", str(args.work.resolve())]
        command += ["--toy"] * args.toy
    begin = time.monotonic()
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(args.carried), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
        status = str(process.returncode)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            output, _ = process.communicate(timeout=SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        status = f"out of its {seconds:g} seconds"
    took = round(time.monotonic() - begin, 1)
    log.write(f"===== {name}: status {status}, {took} s\n{output}\n")
    log.flush()
    print(f"{name}: status {status}, {took} s", flush=True)
    if status != "0":
        print("\n".join(output.splitlines()[-15:]), flush=True)
    return {"status": status, "seconds": took, "tail": output.splitlines()[-40:] if name == "tests" else []}


def results(work: Path) -> dict[str, Any]:
    """Results of the stages, also partial results of stages that exceeded their time."""
    return {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(work.glob("*.json"))}


def parts(work: Path, names: list[str], out: Path) -> dict[str, str]:
    """Write the named folders of ``work`` as one archive in parts; returns the SHA-256 of each part.

    Even and odd bytes are compressed separately, since the high byte of a bfloat16 compresses well.
    """
    if not any((work / name).is_dir() for name in names):
        return {}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            if (work / name).is_dir():
                archive.add(work / name, arcname=name)
    plain, digests = stream.getvalue(), {}
    planes = [zlib.compress(plain[start::2], 1) for start in range(2)]
    content = len(planes[0]).to_bytes(8, "big") + b"".join(planes)
    for number, start in enumerate(range(0, len(content), PART_BYTES)):
        part = content[start : start + PART_BYTES]
        (out / f"bundles.tar.{number:02d}").write_bytes(part)
        digests[f"bundles.tar.{number:02d}"] = hashlib.sha256(part).hexdigest()
    return digests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--carried", type=Path, default=Path("build/gpu"))
    parser.add_argument("--work", type=Path, default=Path("build/gpu/work"))
    parser.add_argument("--out", type=Path, default=Path("build/gpu/out"))
    parser.add_argument("--stages", nargs="+", default=DEFAULT, metavar="NAME=SECONDS")
    parser.add_argument("--return", dest="bundles", nargs="*", default=[], metavar="BUNDLE")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    for folder in (args.work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    with (args.out / "log.txt").open("w") as log:
        for stage in args.stages:
            name, _, seconds = stage.partition("=")
            outcomes[name] = run_stage(name, float(seconds or 60), args, log)
            digests = parts(args.work, args.bundles, args.out)
            record = {"python": platform.python_version(), "ended": outcomes, "parts": digests} | results(args.work)
            (args.out / "results.json").write_text(json.dumps(record, indent=1))
    print(json.dumps({name: (outcome["status"], outcome["seconds"]) for name, outcome in outcomes.items()}))


if __name__ == "__main__":
    main()
