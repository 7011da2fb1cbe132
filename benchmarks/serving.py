"""Tables of docs/serving.md: latency and throughput of ``didi serve`` on this machine.

    python benchmarks/serving.py measure --out docs/results/serving.json   # some ten minutes on two idle cores
    python benchmarks/serving.py page    [--results FILE]

A short run of all parts, whose figures mean nothing, to see that they work:

    python benchmarks/serving.py measure --out FILE --quick

For each number of threads (1 and 2), ``measure`` runs ``serving_bound.py`` and starts a server on loopback. In each
round, each number of clients sends the same requests, which differ only in their seeds; the first number is one client,
which sends them one after the other. Throughput is compared within a round, so that other load on the machine affects
all numbers of clients alike. The machine should be idle nevertheless. ``page`` updates the tables of the page.
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
    """Environment of a process whose operations use ``threads`` threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


@contextlib.contextmanager
def server(model: str, threads: int) -> Iterator[str]:
    """A running server of ``model``; yields its address."""
    command = [sys.executable, "-m", "didi", "serve", model, "--port", "0", "--max-queue", "1024"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(threads))
    assert process.stderr is not None
    log = ""
    try:
        for log in process.stderr:
            if match := re.search(r"running on (http://[\d.]+:\d+)", log):
                break
        else:
            raise SystemExit(f"the server did not start; the last line of its log: {log.strip()}")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield match[1]
    finally:
        process.terminate()
        process.wait()


def has_text(line: str) -> bool:
    """Whether a line of a stream is a move that reveals text; a move may reveal none."""
    return line.startswith("data: ") and bool(json.loads(line.removeprefix("data: ")).get("positions"))


async def request(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[float, float]:
    """Send one streamed request; return the seconds until its first text and until its end."""
    started, first = time.perf_counter(), float("nan")
    async with client.stream("POST", "/v1/generate", json={**body, "stream": True}) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if first != first and has_text(line):
                first = time.perf_counter() - started
            if line == "event: error":
                raise SystemExit("a stream failed")
    return first, time.perf_counter() - started


async def turn(url: str, bodies: list[dict[str, Any]], num_clients: int) -> dict[str, Any]:
    """Send the requests from ``num_clients`` concurrent clients; return seconds of each request and of all requests.

    A client sends the next request as soon as its last response has ended.
    """
    remaining, times = iter(bodies), []

    async def client(session: httpx.AsyncClient) -> None:
        for body in remaining:
            times.append(await request(session, body))

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as session:
        started = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(num_clients)))
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "first": [first for first, _ in times], "whole": [whole for _, whole in times]}


def served(args: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    """Measure all rounds over HTTP: a row for each length and number of clients."""
    rows = []
    with server(args.model, threads) as url:
        for length in args.lengths:
            turns: dict[int, list[dict[str, Any]]] = {num: [] for num in args.clients}
            for number in range(args.rounds + 1):  # the first round is a warm-up
                print(f"over HTTP, {length} tokens, round {number} of {args.rounds}", file=sys.stderr, flush=True)
                for num in args.clients:
                    bodies = [{"seed": seed, "nfe": args.nfe, "length": length} for seed in range(args.requests)]
                    result = asyncio.run(turn(url, bodies, num))
                    if number:
                        turns[num].append(result)
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
        return json.loads(out.read_text("utf-8"))["rows"]


def measure(args: argparse.Namespace) -> None:
    """Measure with and without HTTP, for each number of threads."""
    if args.quick:
        vars(args).update(lengths=[16], clients=[1, 8, 16, 64], requests=2, rounds=1)
    record = {"machine": machine_name(torch.device("cpu")), "load": os.getloadavg()[0]}
    settings = {"model": args.model, "nfe": args.nfe, "rounds": args.rounds, "requests": args.requests}
    started, by_threads = time.monotonic(), []
    for num in args.threads:
        by_threads.append({"threads": num, "bounds": bounds(args, num), "rows": served(args, num)})
        write_json(args.out, {**record, **settings, "by_threads": by_threads})
        print(f"threads {num}: {time.monotonic() - started:.0f} s so far; written to {args.out}", file=sys.stderr)


def row(length: int, args: argparse.Namespace, num: int, turns: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Latencies in milliseconds over all rounds, and the ratio of the throughput to that of one client per round."""
    first, whole = ([1000 * s for result in turns[num] for s in result[name]] for name in ("first", "whole"))
    pairs = zip(turns[args.clients[0]], turns[num], strict=True)
    ratios = [sequential["seconds"] / concurrent["seconds"] for sequential, concurrent in pairs]
    seconds = sum(result["seconds"] for result in turns[num])
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
    """The rows as a Markdown table."""
    names = ["tokens", "clients", "first text, ms", "p50, ms", "p95, ms", "tokens / s", "speed-up"]
    cells = [
        [
            str(row["length"]),
            str(row["clients"]),
            *(f"{row[name]:,.0f}" for name in ("first_p50", "p50", "p95", "tokens_per_second")),
            "{:.2f} [{:.2f}, {:.2f}]".format(row["ratio"], *row["ratio_range"]),
        ]
        for row in rows
    ]
    return markdown_table(names, cells)


def bound_table(rows: list[dict[str, Any]]) -> list[str]:
    """Speed-ups of 16 sequences in a batch, and milliseconds per text of the scheduler and of transformers' GPT-2."""
    kinds, lengths = ("trunk", "pass", "scheduler", "gpt2"), sorted({row["length"] for row in rows})
    by_kind = {(row["kind"], row["length"]): row for row in rows}
    cells = [
        [
            str(length),
            *("{:.2f} [{:.2f}, {:.2f}]".format(row["ratio"], *row["ratio_range"]) for row in selected),
            *(f"{row['alone']:.1f} / {row['together']:.1f}" for row in selected[2:]),
        ]
        for length in lengths
        for selected in [[by_kind[kind, length] for kind in kinds]]
    ]
    names = [
        "tokens",
        "network",
        "with head and draws",
        "scheduler",
        "GPT-2",
        "scheduler, ms per text",
        "GPT-2, ms per text",
    ]
    return markdown_table(names, cells)


def page(args: argparse.Namespace) -> None:
    """Update the tables of docs/serving.md."""
    if not args.results.exists():
        raise SystemExit(f"there is no {args.results}: run measure --out {args.results} first")
    results = json.loads(args.results.read_text("utf-8"))
    rounds = f"{results['requests']} streams per round, {results['rounds']} rounds, medians and ranges over the rounds"
    machine = f"{results['machine']}, load {results['load']:.1f} before the measurement"
    lines = [f"`{results['model']}`, {results['nfe']} moves, {rounds}; {machine}."]
    for group in results["by_threads"]:
        threads = f"{group['threads']} thread{'s' if group['threads'] > 1 else ''}"
        lines += ["", f"Over HTTP, {threads}:", "", *table(group["rows"])]
        lines += [
            "",
            f"Speed-up of 16 texts together, without HTTP, {threads}; milliseconds one after the other / together:",
            "",
            *bound_table(group["bounds"]),
        ]
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
        "--clients", type=int, nargs="+", default=[1, 8, 16, 64], help="the first number is the baseline of speed-ups"
    )
    measured.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    measured.add_argument("--requests", type=int, default=64)
    measured.add_argument("--rounds", type=int, default=3)
    measured.add_argument("--quick", action="store_true", help="replace these numbers by the smallest ones: a dry run")
    paged.set_defaults(run=page)
    paged.add_argument("--results", type=Path, default=STORED)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
