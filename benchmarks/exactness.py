"""The bias of published float32 sampling, measured on a known distribution: docs/exactness.md.

    python benchmarks/exactness.py measure --out FILE.json [--num-tokens 512]
    python benchmarks/exactness.py page

``measure`` samples from a network that always predicts the same Zipf distribution, by the published algorithm in
float32 and by ``ancestral`` in float64. The fraction of rare tokens among the samples should be their probability
under the Zipf distribution, for any number of moves.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from pages import DOCS, renew, write_json
from scipy import stats
from torch import Tensor

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise, derive_seed
from didi.evaluation.machine import machine_name
from didi.files import replacing
from didi.markdown import markdown_table
from didi.sampling.ancestral import Ancestral
from didi.sampling.base import Sampler, time_grid
from didi.sampling.published import Published

VOCAB_SIZE = 50_258  # GPT-2 and the mask
NUM_COMMON = 1000  # every token after these is rare
LENGTH = 64
NFES = (4, 16, 64, 256, 1024)
SEED = 7
STORED = DOCS / "results" / "exactness.json"


class Zipf:
    """A denoiser that predicts p(rank) ~ 1 / rank at every position in every state."""

    vocab_size, mask_id, length, is_time_conditioned = VOCAB_SIZE, VOCAB_SIZE - 1, LENGTH, False

    def __init__(self, vocab_size: int = VOCAB_SIZE) -> None:
        self.vocab_size, self.mask_id = vocab_size, vocab_size - 1
        self.logits = -torch.arange(1, vocab_size + 1, dtype=torch.float32).log()

    def features(self, inputs: Tensor, sigma: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Zeros; the head does not read them."""
        del sigma, mask
        return torch.zeros(*inputs.shape, 1)

    def head(self, features: Tensor) -> Tensor:
        """The same logits for every row."""
        return self.logits.expand(*features.shape[:-1], -1)

    def rare_share(self, num_common: int = NUM_COMMON) -> float:
        """Exact probability of the rare tokens."""
        return float(self.logits[: self.mask_id].double().softmax(0)[num_common:].sum())


def rare_tokens(sampler: Sampler, nfe: int, num_sequences: int, num_common: int = NUM_COMMON) -> int:
    """Number of rare tokens among sampled sequences."""
    num_rare = 0
    for number in range(num_sequences):  # one at a time: the published algorithm keeps all logits of a batch in memory
        noise = SequenceNoise(derive_seed(SEED, nfe), [number])
        *_, last = sampler(Canvas.blank(1, LENGTH), time_grid(nfe), noise)
        num_rare += int((last.z >= num_common).sum())
    return num_rare


def measure(args: argparse.Namespace) -> None:
    denoiser = Zipf()
    process = Absorbing(denoiser.mask_id)
    num_sequences = math.ceil(args.num_tokens / LENGTH)
    rows = []
    for nfe in NFES:
        for name, sampler, times in (
            ("float64", Ancestral(denoiser, process), 16),  # cheap enough for 16 times as many sequences
            ("float32", Published(denoiser, process, precision="float32"), 1),
        ):
            begin = time.perf_counter()
            num_rare = rare_tokens(sampler, nfe, times * num_sequences)
            rows.append({"precision": name, "nfe": nfe, "rare": num_rare, "tokens": times * num_sequences * LENGTH})
            print(rows[-1], f"{time.perf_counter() - begin:.1f} s", flush=True)
    record = {"exact": denoiser.rare_share(), "seed": SEED, "machine": machine_name(), "rows": rows}
    write_json(args.out, record)


def interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion."""
    ends = stats.binomtest(count, total).proportion_ci(method="wilson")
    return float(ends.low), float(ends.high)


def page(args: argparse.Namespace) -> None:
    del args
    record = json.loads(STORED.read_text("utf-8"))
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.axhline(record["exact"], color="0.4", linewidth=1, label="exact")
    by_nfe: dict[int, dict[str, str]] = {}
    for precision, colour in (("float64", "C0"), ("float32", "C3")):
        rows = [row for row in record["rows"] if row["precision"] == precision]
        shares = [row["rare"] / row["tokens"] for row in rows]
        ends = [interval(row["rare"], row["tokens"]) for row in rows]
        errors = [[s - low for s, (low, _) in zip(shares, ends)], [high - s for s, (_, high) in zip(shares, ends)]]  # noqa: B905
        axes.errorbar(
            [row["nfe"] for row in rows], shares, yerr=errors, fmt="o-", capsize=3, color=colour, label=precision
        )
        for row, share, (low, high) in zip(rows, shares, ends, strict=True):
            by_nfe.setdefault(row["nfe"], {})[precision] = f"{share:.3f} [{low:.3f}, {high:.3f}]"
    lines = [f"Exact share of rare tokens (rank over {NUM_COMMON:,}): {record['exact']:.3f}.\n"]
    body = [[nfe, cells["float64"], cells["float32"]] for nfe, cells in by_nfe.items()]
    lines += markdown_table(["NFE", "float64 (didi)", "float32 Gumbel noise (published)"], body, num_left=0)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("NFE")
    axes.set_ylabel(f"share of tokens of rank over {NUM_COMMON:,}")
    axes.set_ylim(0, None)
    axes.legend(frameon=False)
    with replacing(DOCS / "results" / "exactness.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    lines.append(
        f"\nShare of tokens of rank over {NUM_COMMON:,}, with Wilson 95% intervals. Zipf distribution, p(rank) "
        f"proportional to 1 / rank, over {VOCAB_SIZE - 1:,} tokens; {record['rows'][0]['tokens']:,} tokens for each "
        f"float64 entry and {record['rows'][1]['tokens']:,} for each float32 entry; seed {record['seed']}; "
        f"{record['machine']}."
    )
    renew(DOCS / "exactness.md", "exactness.py", lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure")
    command.set_defaults(run=measure)
    command.add_argument("--out", type=Path, default=STORED)
    command.add_argument("--num-tokens", type=int, default=512)
    commands.add_parser("page").set_defaults(run=page)
    args = parser.parse_args(words)
    args.run(args)


if __name__ == "__main__":
    main()
