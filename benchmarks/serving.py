"""The figures of docs/serving.md: latency and throughput of ``didi serve`` on this machine, in some five minutes.

    python benchmarks/serving.py measure --out docs/results/serving.json
    python benchmarks/serving.py page    [--results FILE]

For each number of threads (1 and 2), ``measure`` runs ``serving_bound.py``, and starts a server on loopback. In each
round every number of clients takes its turn with the same requests, which differ in their seeds alone; one client sends
them one by one. Throughput is compared within a round, so that what else the machine does falls on all. Nothing else
should run all the same. ``page`` updates the tables of the page.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
from pages import DOCS, renew, write_json

from didi.evaluation.machine import machine_name
from didi.markdown import markdown_table

STORED = DOCS / "results" / "serving.json"


def environment(threads: int) -> dict[str, str]:
    """Of a process with so many threads for each operation."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


@contextlib.contextmanager
def server(model: str, threads: int) -> Iterator[str]:
    """Address of a server of ``model``."""
    command = [sys.executable, "-m", "didi", "serve", model, "--port", "0", "--max-queue", "1024"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(threads))
    assert process.stderr is not None
    try:
        found = next(filter(None, (re.search(r"running on (http://[\d.]+:\d+)", line) for line in process.stderr)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found[1]
    finally:
        process.terminate()
        process.wait()


async def request(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[float, float]:
    """Seconds to the first tokens of a stream, and to its end."""
    started, first = time.perf_counter(), float("nan")
    async with client.stream("POST", "/v1/generate", json={**body, "stream": True}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line == "event: move" and first != first:
                first = time.perf_counter() - started
            if line == "event: error":
                raise SystemExit("a stream failed")
    return first, time.perf_counter() - started


async def turn(url: str, bodies: list[dict[str, Any]], num_clients: int) -> dict[str, Any]:
    """Seconds of each request, and of all, when ``num_clients`` send them, each the next as soon as one is answered."""
    left, times = iter(bodies), []

    async def client(session: httpx.AsyncClient) -> None:
        for body in left:
            times.append(await request(session, body))

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as session:
        started = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(num_clients)))
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "first": [one for one, _ in times], "whole": [one for _, one in times]}


def served(args: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    """All turns of all rounds: a row for each length and number of clients."""
    rows = []
    with server(args.model, threads) as url:
        for length in args.lengths:
            turns: dict[int, list[dict[str, Any]]] = {num: [] for num in args.clients}
            for number in range(args.rounds + 1):  # the first is not counted
                for num in args.clients:
                    bodies = [{"seed": seed, "nfe": args.nfe, "length": length} for seed in range(args.requests)]
                    found = asyncio.run(turn(url, bodies, num))
                    if number:
                        turns[num].append(found)
            rows += [row(length, args, num, turns) for num in args.clients]
    print("\n".join(table(rows)), flush=True)
    return rows


def bounds(args: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    """Rows of ``serving_bound.py``."""
    script, lengths = Path(__file__).with_name("serving_bound.py"), map(str, args.lengths)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bound.json"
        words = ["--out", out, "--model", args.model, "--nfe", str(args.nfe), "--rounds", str(args.rounds)]
        command = [sys.executable, script, *words, "--lengths", *lengths]
        subprocess.run(command, check=True, env=environment(threads))
        return json.loads(out.read_text())["rows"]


def measure(args: argparse.Namespace) -> None:
    """Both parts, for each number of threads."""
    found = [{"threads": one, "bounds": bounds(args, one), "rows": served(args, one)} for one in args.threads]
    record = {"machine": machine_name(torch.device("cpu")), "load": os.getloadavg()[0]}
    settings = {"model": args.model, "nfe": args.nfe, "rounds": args.rounds, "requests": args.requests}
    write_json(args.out, {**record, **settings, "by_threads": found})


def row(length: int, args: argparse.Namespace, num: int, turns: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Latencies in milliseconds over all rounds; throughput over that of one client, round by round."""
    first, whole = ([1000 * s for one in turns[num] for s in one[name]] for name in ("first", "whole"))
    ratios = [alone["seconds"] / one["seconds"] for alone, one in zip(turns[args.clients[0]], turns[num], strict=True)]
    seconds = sum(one["seconds"] for one in turns[num])
    return {
        "length": length,
        "clients": num,
        "first_p50": statistics.median(first),
        "p50": statistics.median(whole),
        "p95": statistics.quantiles(whole, n=20)[-1],
        "tokens_per_second": args.requests * args.rounds * length / seconds,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table."""
    names = ["tokens", "clients", "first tokens, ms", "p50, ms", "p95, ms", "tokens / s", "over one by one"]
    cells = [
        [
            str(one["length"]),
            str(one["clients"]),
            *(f"{one[name]:,.0f}" for name in ("first_p50", "p50", "p95", "tokens_per_second")),
            "{:.2f} [{:.2f}, {:.2f}]".format(one["ratio"], *one["ratio_range"]),
        ]
        for one in rows
    ]
    return markdown_table(names, cells)


def bound_table(rows: list[dict[str, Any]]) -> list[str]:
    """Ratios of 16 together over one by one, and the milliseconds of a text from the twin."""
    kinds, lengths = ("trunk", "pass", "scheduler", "twin"), sorted({one["length"] for one in rows})
    found = {(one["kind"], one["length"]): one for one in rows}
    cells = [
        [
            str(length),
            *("{:.2f} [{:.2f}, {:.2f}]".format(one["ratio"], *one["ratio_range"]) for one in mine),
            *(f"{one['alone']:.1f} / {one['together']:.1f}" for one in mine[2:]),
        ]
        for length in lengths
        for mine in [[found[kind, length] for kind in kinds]]
    ]
    names = ["tokens", "network", "with head and draws", "scheduler", "twin", "scheduler, ms a text", "twin, ms a text"]
    return markdown_table(names, cells)


def page(args: argparse.Namespace) -> None:
    """Update the tables of docs/serving.md."""
    found = json.loads(args.results.read_text())
    lines = [
        f"`{found['model']}`, {found['nfe']} moves, {found['requests']} streams a turn, {found['rounds']} rounds, "
        f"medians and ranges of the rounds; {found['machine']}, load {found['load']:.1f} at the end."
    ]
    for one in found["by_threads"]:
        threads = f"{one['threads']} thread{'s' if one['threads'] > 1 else ''}"
        lines += ["", f"Over HTTP, {threads}:", "", *table(one["rows"])]
        lines += ["", f"16 at once over one by one, without HTTP, {threads}:", "", *bound_table(one["bounds"])]
    renew(DOCS / "serving.md", "serving.py", lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measured, paged = commands.add_parser("measure"), commands.add_parser("page")
    measured.set_defaults(run=measure)
    measured.add_argument("--out", type=Path, required=True)
    measured.add_argument("--model", default="tiny-news")
    measured.add_argument("--nfe", type=int, default=8)
    measured.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64, 128])
    measured.add_argument(
        "--clients", type=int, nargs="+", default=[1, 8, 16, 64], help="first the one to compare with"
    )
    measured.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    measured.add_argument("--requests", type=int, default=64)
    measured.add_argument("--rounds", type=int, default=3)
    paged.set_defaults(run=page)
    paged.add_argument("--results", type=Path, default=STORED)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
