"""``didi evaluate``: sample a model, score the samples by a judge, and write metrics, a report and figures."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from didi.apps.console import ResultConsole, print_rows
from didi.apps.options import (
    GuidanceFlags,
    InitialStateFlags,
    OrderFlags,
    RemaskingFlags,
    ReparamFlags,
    sampling_options,
)
from didi.apps.outputs import refuse_existing
from didi.apps.terminal import parse
from didi.data.source import source_for
from didi.diffusion.categorical import Precision
from didi.errors import UsageError
from didi.evaluation.anchors import anchor_sets
from didi.evaluation.evaluate import evaluate
from didi.evaluation.mauve import load_embedding
from didi.evaluation.report import RESULTS
from didi.evaluation.row import EvaluationRow
from didi.models.bundle import Role, load
from didi.process_group import default_device
from didi.sampling.base import Grid
from didi.sampling.options import DEFAULT_SAMPLER, SamplerName


@dataclass(frozen=True)
class EvaluateCommand:
    """Generate samples, score them with a judge, and write metrics.json, report.md and a figure."""

    model: str
    """A bundled name, a bundle folder or a Hub repository."""
    out: Path
    """Folder of the results."""
    overwrite: bool = False
    """Replace the results of an earlier evaluation in --out."""
    role: tuple[Role, ...] = ()
    """student, teacher, autoregressive, or several of them; by default the student if the bundle has one."""
    nfe: tuple[int, ...] = (4, 8, 16)
    """Numbers of sampling steps."""
    num_samples: int = 256
    """Number of samples in each row; all are scored."""
    judge: tuple[str, ...] = ()
    """smollm2-135m (the default for text), gemma3-270m, any causal language model of transformers, or several. For
    models of the synthetic corpora markov and exact: exact, their known likelihood, with exact divergences of a sampler
    where they can be computed."""
    sampler: tuple[SamplerName, ...] = (DEFAULT_SAMPLER,)
    """One or several samplers; default is one-step for a student that was trained for it, else ancestral."""
    data: str | None = None
    """Corpus: news, a file or a Hub data set. Its test split is evaluated as one row, and each network's NELBO is
    computed on it."""
    anchors: bool = False
    """Evaluate negative controls too: the words of --data shuffled, one word repeated, samples of an n-gram model."""
    mauve: str | None = None
    """Embedding model for MAUVE against --data: embedder (MiniLM), or any model of transformers, such as gpt2-large."""
    joint: bool = False
    """Estimate the joint KL divergence of each row by a network fitted to its samples: a minute or more a row."""
    joint_reference: str | None = None
    """Bundle whose autoregressive network --joint measures from (didi pretrain tiny-news-ar); by default the exact
    chain, or the model's own network. Implies --joint."""
    seed: int = 0
    """Random seed of the samples."""
    precision: Precision = "float64"
    """Precision of the random draws; recorded in every row."""
    temperature: tuple[float, ...] = (1.0,)
    """Divides the logits; several values make a sweep, which compares models at equal entropy."""
    top_p: tuple[float, ...] = ()
    """Probability masses of each token's distribution that are kept, at temperature 1; a second sweep."""
    grid: Grid = "uniform"
    """Spacing of the times of the sampling steps; recorded in every row."""
    times: tuple[float, ...] = ()
    """Times of the sampling steps, from 1 down to 0; replaces --nfe and --grid."""
    batch_size: int = 32
    """Number of sequences in a batch; changes speed and memory, and samples by rounding alone."""
    guidance: GuidanceFlags = field(default_factory=GuidanceFlags)
    order: OrderFlags = field(default_factory=OrderFlags)
    entropy_bound: float | None = None
    """entropy-bounded: bound in nats on the sum of the entropies of a step's tokens without the largest; default 1."""
    remask: RemaskingFlags = field(default_factory=RemaskingFlags)
    initial_state: InitialStateFlags = field(default_factory=InitialStateFlags)
    reparam: ReparamFlags = field(default_factory=ReparamFlags)


def run_evaluate(args: Sequence[str]) -> None:
    """Run ``didi evaluate`` with the arguments after the command's name."""
    command = parse(EvaluateCommand, args, prog="didi evaluate")
    refuse_existing(command.out, RESULTS, overwrite=command.overwrite)
    bundle = load(command.model).to(default_device())
    data, anchors = None, None
    if command.anchors and command.data is None:
        raise UsageError("anchors are made of a corpus; name one with --data")
    if command.data is not None:
        source = source_for(bundle, command.data)
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
        joint=command.joint if command.joint_reference is None else load(command.joint_reference),
        options=sampling_options(command, bundle, temperature=1.0, top_p=1.0),
        out=command.out,
        on_set=lambda measured: print(_summary(measured.row, shows_judge=len(command.judge) > 1), file=sys.stderr),
    )
    judges = ", ".join(dict.fromkeys(row.judge for row in rows))
    title = f"{bundle.name}, judge {judges}, {command.num_samples} samples"
    print_rows(rows, title=title, console=ResultConsole())
    print(command.out / "report.md")


def _summary(row: EvaluationRow, *, shows_judge: bool) -> str:
    """One line of progress for a row."""
    label = row.label(also=("judge",) if shows_judge else ())
    kinds = ((", KL {:.4f}", row.kl), (", KL of pairs {:.4f}", row.pair_kl), (", joint KL {:.2f}", row.joint_kl))
    divergences = "".join(text.format(value) for text, value in kinds if math.isfinite(value))
    return f"{label}: perplexity {row.gen_ppl:.2f}, entropy {row.entropy:.3f}{divergences}"
