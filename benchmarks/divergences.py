"""Divergences of the bundled models' samples, and the accuracy of the estimates: docs/results/divergences.json.

    python benchmarks/divergences.py accuracy
    python benchmarks/divergences.py markov --student RUN/bundle
    python benchmarks/divergences.py tiny-news --reference RUN/bundle
    python benchmarks/divergences.py page

The student is trained by `didi distill markov`, the reference by `didi pretrain tiny-news-ar`. Each part is written as
soon as it is measured. `accuracy` needs only the bundled model `markov`.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pages import DOCS, renew, write_json

import didi
from didi.data.markov import MarkovChain
from didi.diffusion.schedule import LogLinear
from didi.evaluation.exact.sampler import chain_predictions, sampler_distribution
from didi.evaluation.exact.states import States
from didi.evaluation.joint import JointSettings, joint_divergence
from didi.evaluation.machine import machine_name
from didi.evaluation.ngrams import ngram_divergence
from didi.evaluation.perplexity import Scores
from didi.evaluation.row import EvaluationRow, SampleSet
from didi.markdown import markdown_table
from didi.models.autoregressive import AutoregressiveLM
from didi.sampling.base import path_alphas
from didi.sampling.options import SamplingOptions

RESULTS = DOCS / "results" / "divergences.json"
TEACHER_NFE = (4, 8, 12, 16, 32, 64, 128)
STUDENT_NFE = (4, 8, 16)
KEPT = ("role", "sampler", "nfe", "num_samples", "seed", "gen_ppl", "gen_ppl_ci", "entropy", "entropy_ci")


def few_move_probs(chain: MarkovChain, length: int, num_moves: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All sequences, and their probabilities under the ancestral sampler with the exact posterior of the chain."""
    states, times = States(chain.num_symbols, length), torch.linspace(1, 0, num_moves + 1, dtype=torch.float64)
    alphas = path_alphas(LogLinear(), times)
    return states.clean, sampler_distribution(states, alphas, chain_predictions(chain, states))


def accuracy_ngrams(teacher_pool: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Bias and standard deviation of the estimates over sets of samples of the chain and of the teacher at 8 NFE."""
    chain = MarkovChain()
    draws: dict[str, Callable[[int, torch.Generator], torch.Tensor]] = {
        "chain": lambda size, generator: chain.sample(size, 32, generator),
        "teacher, 8 NFE": lambda size, generator: teacher_pool[
            torch.randperm(len(teacher_pool), generator=generator)[:size]
        ],
    }
    for name, draw in draws.items():
        truth = [ngram_divergence(teacher_pool, chain, n) for n in (2, 3)] if name != "chain" else None
        for n, size in itertools.product((2, 3), (1024, 2048, 4096)):
            sets = [draw(size, torch.Generator().manual_seed(40_000 + seed)) for seed in range(60)]
            estimates = [ngram_divergence(tokens, chain, n) for tokens in sets]
            record: dict[str, Any] = {"samples of": name, "n": n, "num_samples": size, "sets": len(sets)}
            for field in ("kl", "reverse_kl"):
                values = [getattr(estimate, field) for estimate in estimates]
                true = 0.0 if truth is None else getattr(truth[n - 2], field)
                intervals = [getattr(estimate, f"{field}_ci") for estimate in estimates]
                held = [low <= true <= high for low, high in intervals]
                record[field] = {
                    "true": true,  # for the teacher, the estimate from 32,768 samples
                    "bias": statistics.fmean(values) - true,
                    "sd": statistics.stdev(values),
                    "held by the interval": statistics.fmean(held),
                }
            yield record


def accuracy_joint(teacher_pool: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Joint estimates for distributions of known divergence, and for increasing numbers of samples."""
    generator = torch.Generator().manual_seed(41_000)
    chain, small = MarkovChain(), MarkovChain(num_symbols=4, seed=1)
    for size in (1024, 2048, 4096):
        yield _joint("chain", 0.0, chain.sample(size, 32, generator), chain)
    for moves in (1, 2, 4, 8):
        sequences, probs = few_move_probs(small, 7, moves)
        log_ratios = probs.log() - small.log_likelihood(sequences)
        true = float((probs * log_ratios).sum())
        for size in (2048, 4096):
            rows = torch.multinomial(probs, size, replacement=True, generator=generator)
            record = _joint(f"4 symbols, 7 positions, {moves} move{'s' * (moves > 1)}", true, sequences[rows], small)
            # The estimate of a perfect fit for these samples, which differs from the true value by sampling error only.
            yield record | {"mean exact log-ratio of the samples": float(log_ratios[rows].mean())}
    for size in (1024, 2048, 4096, 8192, 16_384):
        yield _joint("teacher, 8 NFE", None, teacher_pool[:size], chain)
    for seed in (1, 2):
        yield _joint(f"teacher, 8 NFE, seed {seed} of the fit", None, teacher_pool[:2048], chain, seed=seed)


def _joint(name: str, true: float | None, tokens: torch.Tensor, chain: MarkovChain, seed: int = 0) -> dict[str, Any]:
    begin = time.perf_counter()
    estimate = joint_divergence(tokens, chain, JointSettings(seed=seed))
    return {
        "samples of": name,
        "num_samples": len(tokens),
        "true": true,
        "joint_kl": estimate.kl,
        "joint_kl_ci": estimate.ci,
        "folds": estimate.folds,
        "seconds": time.perf_counter() - begin,
    }


def kept(row: EvaluationRow) -> dict[str, Any]:
    """The fields of a row that the page shows."""
    record = row.record()
    names = (*KEPT, *(name for name in record if name.startswith(("pair_", "triple_", "joint_"))))
    return {name: record[name] for name in names}


def interval(record: dict[str, Any], name: str, spec: str) -> str:
    """Figure and interval; no interval for triples, as in ``didi evaluate``, also for figures of older versions."""
    if name.startswith("triple") or record[f"{name}_ci"] is None:
        return f"{record[name]:z{spec}}"
    low, high = record[f"{name}_ci"]
    return f"{record[name]:z{spec}} [{low:z{spec}}, {high:z{spec}}]"


def page(results: dict[str, Any]) -> list[str]:
    """The tables of the page."""
    columns = ("pair_kl", "pair_reverse_kl", "triple_kl", "triple_reverse_kl")
    body = []
    for part in ("teacher", "student", "student, guided", "chain"):
        for row in results[f"markov {part}"]:
            figures = [interval(row, name, ".4f") for name in columns]
            name = f"{part}, {row['nfe']} NFE" if row["nfe"] else part
            figures = [f"{row['gen_ppl']:.2f}", f"{row['entropy']:.3f}", *figures, interval(row, "joint_kl", ".2f")]
            body.append([name, *figures])
    header = ["markov", "perplexity", "entropy", "pair KL", "pair KL, reverse", "triple KL", "triple KL, reverse"]
    lines = markdown_table([*header, "joint KL"], body, num_left=1)
    body = []
    for row in results["accuracy of pairs and triples"]:
        figures = []
        for name in ("kl", "reverse_kl"):
            figure = row[name]
            figures += [f"{figure['true']:.4f}", f"{figure['bias']:+z.4f}", f"{figure['sd']:.4f}"]
            figures.append(f"{figure['held by the interval']:.0%}")
        body.append([row["samples of"], "pairs" if row["n"] == 2 else "triples", f"{row['num_samples']:,}", *figures])
    header = ["samples of", "", "samples", "KL", "bias", "sd", "held", "reverse", "bias", "sd", "held"]
    lines += ["", *markdown_table(header, body, num_left=2)]
    body = []
    for row in results["accuracy of the joint"]:
        true = "–" if row["true"] is None else f"{row['true']:.3f}"
        sampled = row.get("mean exact log-ratio of the samples")
        sampled = ("–" if row["true"] is None else "0") if sampled is None else f"{sampled:.3f}"
        body.append([row["samples of"], f"{row['num_samples']:,}", true, sampled, interval(row, "joint_kl", ".3f")])
    header = ["samples of", "samples", "exact KL", "mean exact log-ratio of the samples", "joint KL"]
    lines += ["", *markdown_table(header, body, num_left=1)]
    rows = [(part, row) for part in ("data", "teacher", "student") for row in results.get(f"tiny-news {part}", [])]
    if rows:
        body = []
        for part, row in rows:
            name = f"{part}, {row['nfe']} NFE" if row["nfe"] else part
            figures = [f"{row['gen_ppl']:.1f}", f"{row['entropy']:.3f}", interval(row, "joint_kl", ".1f")]
            body.append([name, f"{row['num_samples']:,}", *figures])
        lines += ["", *markdown_table(["tiny-news", "samples", "perplexity", "entropy", "joint KL"], body, num_left=1)]
    return [*lines, "", f"{results['machine']}."]


class NetworkJudge:
    """The reference network as a judge, so that no other model is needed for the perplexity."""

    name = "reference"

    def __init__(self, network: AutoregressiveLM) -> None:
        self.network = network

    @torch.no_grad()
    def score(self, texts: Sequence[str], tokens: torch.Tensor) -> Scores:
        del texts
        nll = torch.cat([self.network.nll(chunk).double().sum(1) for chunk in tokens.split(32)])
        return Scores(nll, torch.full((len(tokens),), tokens.shape[1]))


def write(part: str, values: Any) -> None:
    """Write a part into the file of results."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    results[part] = values
    results["machine"] = machine_name()
    write_json(RESULTS, results)


def measure(bundle: didi.Bundle, part: str, **settings: Any) -> None:
    """Evaluate a bundle, and write the rows under ``part`` as they are measured."""
    begin, records = time.perf_counter(), []

    def keep(sample_set: SampleSet) -> None:
        row = sample_set.row
        records.append(kept(row) | {"seconds": time.perf_counter() - begin})
        print(part, records[-1]["role"], row.nfe, row.pair_kl, row.joint_kl, flush=True)
        write(part, records)

    options = SamplingOptions(batch_size=32 if part.startswith("tiny") else 256)
    didi.evaluate(bundle, on_set=keep, options=options, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("accuracy", "markov", "tiny-news", "page"))
    parser.add_argument("--student", help="bundle of the markov student")
    parser.add_argument("--reference", help="bundle of the autoregressive network of tiny-news")
    parser.add_argument("--samples", type=int, help="by default 4096 (markov) and 2048 (tiny-news)")
    parser.add_argument("--only-student", action="store_true", help="keep the figures of teacher and data")
    parser.add_argument("--seed", type=int, default=50_000)
    args = parser.parse_args()
    if args.part == "page":
        renew(DOCS / "results" / "divergences.md", "divergences.py", page(json.loads(RESULTS.read_text("utf-8"))))
        return
    if args.part == "accuracy":
        teacher = didi.load("markov")
        pool = didi.generate(teacher, num_samples=32_768, nfe=8, role="teacher", seed=5, batch_size=512).tokens
        for part, run in (
            ("accuracy of pairs and triples", accuracy_ngrams),
            ("accuracy of the joint", accuracy_joint),
        ):
            records: list[dict[str, Any]] = []
            for record in run(pool):
                print(record, flush=True)
                records.append(record)
                write(part, records)
        return
    shared: dict[str, Any] = {"seed": args.seed, "joint": True}
    if args.part == "markov":
        shared["num_samples"] = args.samples or 4096
        bundle = didi.load(args.student)
        measure(bundle, "markov student", role="student", nfe=STUDENT_NFE, **shared)
        measure(bundle, "markov student, guided", role="student", sampler="guided", nfe=STUDENT_NFE, **shared)
        if args.only_student:
            return
        measure(bundle, "markov teacher", role="teacher", nfe=TEACHER_NFE, **shared)
        chain = MarkovChain().sample(shared["num_samples"], 32, torch.Generator().manual_seed(args.seed))
        measure(bundle, "markov chain", nfe=(), data=chain, **shared)
    else:
        from didi.data.source import open_source

        reference = didi.load(args.reference)
        judge = NetworkJudge(reference.autoregressive)
        shared |= {"num_samples": args.samples or 2048, "joint": reference, "judge": judge}
        bundle = didi.load("tiny-news")
        rows = open_source("news", length=128, tokenizer=bundle.tokenizer).test
        measure(bundle, "tiny-news student", role="student", nfe=(8, 16), **shared)
        if args.only_student:
            return
        measure(bundle, "tiny-news teacher", role="teacher", nfe=(8, 32, 128), **shared)
        measure(bundle, "tiny-news data", nfe=(), data=rows, **shared)


if __name__ == "__main__":
    main()
