"""Times without HTTP, for benchmarks/serving.py: the possible speed-up of sharing passes, and that of the scheduler.

    OMP_NUM_THREADS=1 python benchmarks/serving_bound.py --out FILE [--nfe 8] [--lengths 16 32 64 128]

For each length and in each round, 16 sequences are processed one after the other and as one batch by:

- ``trunk``: the trunk of the network. The ratio of the two times is the upper bound of the speed-up if everything else
  costs nothing;
- ``pass``: the trunk, the vocabulary head and the draws of a move that reveals ``1 / nfe`` of the positions;
- ``scheduler``: ``didi.serving.scheduler``;
- ``gpt2``: ``generate`` of transformers for a GPT-2 of the student's shape. Its weights are random, which does not
  change the time.

``--processor-time`` measures the processor time of the process, which other programs disturb less; for one thread only.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pages import write_json

import didi
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle
from didi.sampling.completion import planned
from didi.sampling.prompt import canvas_from_prompt
from didi.sampling.token_distribution import UNMODIFIED
from didi.serving.job import Job
from didi.serving.scheduler import Scheduler

NUM = 16
Work = Callable[[], Any]


def trunk(bundle: Bundle, length: int, _: int) -> tuple[Work, Work]:
    """Passes of the trunk: ``NUM`` passes of one sequence, and one pass of ``NUM`` sequences."""
    network = bundle.network()
    inputs = torch.randint(0, network.vocab_size - 1, (NUM, length))
    level = bundle.process.noise_level(network, torch.full((1,), 0.5, dtype=torch.float64))
    levels = None if level is None else level.expand(NUM)
    return (
        lambda: [network.features(row, level) for row in inputs.split(1)],
        lambda: network.features(inputs, levels),
    )


def whole_pass(bundle: Bundle, length: int, nfe: int) -> tuple[Work, Work]:
    """Passes with the head and the draws of an average move."""
    (alone, together), network, num = trunk(bundle, length, nfe), bundle.network(), max(1, length // nfe)
    uniforms = torch.rand(NUM * num, dtype=torch.float64)

    def drawn(features: torch.Tensor) -> None:
        rows = features[:, :num].flatten(0, 1)  # the first positions stand for the revealed ones
        UNMODIFIED.sample(network.head(rows), network.mask_id, uniforms[: len(rows)])

    return lambda: [drawn(features) for features in alone()], lambda: drawn(together())


def scheduler(bundle: Bundle, length: int, nfe: int) -> tuple[Work, Work]:
    """Jobs of ``NUM`` different seeds."""

    def jobs() -> list[Job]:
        canvas = canvas_from_prompt(bundle, length)
        plans = [planned(bundle, canvas, indices=[0], seed=seed, nfe=nfe) for seed in range(NUM)]
        return [Job(plan, on_end=lambda _: None, on_move=lambda _: None) for plan in plans]

    def run(groups: list[list[Job]]) -> None:
        for group in groups:
            shared = Scheduler(64)
            shared.waiting.extend(group)
            while not shared.is_idle:
                shared.step()

    return lambda: run([[job] for job in jobs()]), lambda: run([jobs()])


def gpt2(bundle: Bundle, length: int, _: int) -> tuple[Work, Work]:
    """Texts of ``length`` tokens from ``generate`` of transformers."""
    shape = bundle.network().config
    gpt2 = AutoregressiveLM(
        AutoregressiveConfig(
            shape.vocab_size, shape.mask_id, shape.length, shape.hidden_size, shape.num_blocks, shape.num_heads
        )
    ).gpt2.eval()
    begin = torch.full((NUM, 1), shape.mask_id)

    def run(inputs: torch.Tensor) -> None:
        size = {"max_new_tokens": length, "min_new_tokens": length}
        mask = torch.ones_like(inputs)
        gpt2.generate(inputs, attention_mask=mask, do_sample=True, top_k=0, pad_token_id=0, **size)

    return lambda: [run(row) for row in begin.split(1)], lambda: run(begin)


KINDS = {"trunk": trunk, "pass": whole_pass, "scheduler": scheduler, "gpt2": gpt2}


def seconds(work: Work, clock: Callable[[], float]) -> float:
    """Seconds of one call of ``work``."""
    started = clock()
    work()
    return clock() - started


@torch.inference_mode()
def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind and length: median milliseconds per sequence, median and range of the ratio over rounds."""
    bundle, rows = didi.load(args.model), []
    clock = time.process_time if args.processor_time else time.perf_counter
    for length in args.lengths:
        works = {kind: KINDS[kind](bundle, length, args.nfe) for kind in args.kinds}
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in works}
        for number in range(args.rounds + 1):  # the first round is a warm-up
            for kind, (alone, together) in works.items():
                pair = seconds(alone, clock), seconds(together, clock)
                if number:
                    times[kind].append(pair)
        for kind, pairs in times.items():
            ratios = [alone / together for alone, together in pairs]
            alone, together = (1000 * statistics.median(column) / NUM for column in zip(*pairs, strict=True))
            spread = {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}
            rows.append({"kind": kind, "length": length, "alone": alone, "together": together, **spread})
            print(
                f"{kind} {length}: {alone:.2f} ms alone, {together:.2f} ms in a batch, {spread['ratio']:.2f}",
                flush=True,
            )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny-news")
    parser.add_argument("--nfe", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--processor-time", action="store_true")
    args = parser.parse_args()
    if args.processor_time and torch.get_num_threads() > 1:
        parser.error("--processor-time needs one thread: set OMP_NUM_THREADS=1")
    write_json(args.out, {"threads": torch.get_num_threads(), "rows": measure(args)})


if __name__ == "__main__":
    main()
