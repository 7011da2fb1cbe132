"""From a bundle to measured rows: sample, judge, tell."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Int
from torch import Tensor

from didi.data.source import MARKOV
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation.perplexity import SMOLLM2, Judge, load_judge
from didi.evaluation.report import write_metrics, write_report
from didi.evaluation.row import EvaluationRow, machine_name, measure
from didi.models.autoregressive import AutoregressiveLM
from didi.models.hub import Bundle, Role
from didi.sampling.generate import SamplerName, SamplingOptions, decode, generate, is_self_paced, make_sampler
from didi.training.pretrain import validation_nll

NUM_EXAMPLES = 2  # texts of each row in a report
NELBO_BATCH = 32


def evaluate(
    bundle: Bundle,
    *,
    nfe: Sequence[int] = (4, 8, 16),
    num_samples: int = 256,
    judge: str | Judge | None = None,
    role: Role | Sequence[Role] | None = None,
    sampler: SamplerName | Sequence[SamplerName] = "ancestral",
    seed: int = 0,
    data: Int[Tensor, "n l"] | None = None,
    options: SamplingOptions | None = None,
    out: Path | str | None = None,
    on_row: Callable[[EvaluationRow, list[str]], None] | None = None,
) -> list[EvaluationRow]:
    """Sample and score every combination of role, sampler and number of passes; every sample counts.

    Args:
        bundle: from ``didi.load``.
        nfe: numbers of moves.
        num_samples: sequences in each row; 256 or more for a figure that is to be quoted.
        judge: name for ``load_judge``, or a judge; by default the exact one for a model of the ``markov`` world, else
            ``smollm2-135m``.
        role: one or several; by default the student if there is one, else the teacher.
        sampler: one or several. Whatever ``nfe`` says, the autoregressive role has one row, and the self-paced
            samplers ``first-hitting`` and ``entropy-bounded`` too.
        seed: of the samples.
        data: held-out token sequences of the bundle's tokenizer; they are judged in a row of their own, and give each
            network's NELBO (exact NLL for the autoregressive one).
        options: further sampling options; role and sampler come from the arguments above.
        out: folder for ``metrics.json``, ``report.md`` and the figure.
        on_row: called with each row and two of its texts as soon as it is measured.

    Raises:
        UsageError: the bundle, the judge or an argument does not allow it.
    """
    roles: Sequence[Role | None] = [role] if role is None or isinstance(role, str) else role
    samplers = [sampler] if isinstance(sampler, str) else sampler
    if not nfe or min(nfe) < 1 or num_samples < 1:
        raise UsageError(f"nfe and num_samples are 1 or more; got {list(nfe)} and {num_samples}")
    plan = _plan(bundle, roles, samplers, nfe, options or SamplingOptions())
    if data is not None and int(data.max()) >= (num_symbols := bundle.network().vocab_size):
        raise UsageError(f"data are tokens of the bundle's own {num_symbols} symbols; got token {int(data.max())}")
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)  # a folder that cannot be written fails now, not after the work
    if judge is None:
        judge = MARKOV if bundle.provenance.get("corpus") == MARKOV else SMOLLM2
    if isinstance(judge, str):
        judge = load_judge(judge, device=next(bundle.network().parameters()).device)
    rows: list[EvaluationRow] = []
    examples: list[list[str]] = []

    def add(row: EvaluationRow, texts: list[str]) -> None:
        rows.append(row)
        examples.append(texts[:NUM_EXAMPLES])
        if out is not None:  # a run that is stopped keeps what it has measured
            write_metrics(rows, Path(out))
        if on_row is not None:
            on_row(row, examples[-1])

    if data is not None:
        # Neighbouring rows come from one document and are alike, so the rows are a random choice.
        order = torch.randperm(len(data), generator=named_generator(seed, "data"))
        real = data[order[:num_samples]]
        texts = decode(bundle, real)
        add(measure("data", "", 0, real, texts, judge, seconds=float("nan"), student_passes=0.0, seed=seed), texts)
    nats: dict[str, float] = {}
    for label, settings, num_moves in plan:
        network = bundle.network(settings.role)
        device = next(network.parameters()).device
        if data is not None and label not in nats:
            nats[label] = validation_nll(network, data, bundle.schedule, batch_size=NELBO_BATCH, device=device)
        drawn = generate(bundle, num_samples=num_samples, nfe=num_moves, seed=seed, options=settings)
        row = measure(
            label,
            settings.sampler,
            num_moves,
            drawn.tokens,
            drawn.texts,
            judge,
            seconds=drawn.seconds,
            student_passes=float(drawn.student_passes.double().mean()),
            discriminator_passes=float(drawn.discriminator_passes.double().mean()),
            precision=drawn.precision,
            seed=seed,
            nelbo=nats.get(label, math.nan),
            machine=machine_name(device),
            temperature=settings.temperature,
            top_p=settings.top_p,
            grid="given" if settings.times else settings.grid,
            settings=settings.settings,
        )
        add(row, drawn.texts)
    if out is not None:
        recipe = str(bundle.provenance.get("recipe", ""))
        write_report(rows, Path(out), title=f"Evaluation of {bundle.name}", samples=examples, recipe=recipe)
    return rows


def _plan(
    bundle: Bundle,
    roles: Sequence[Role | None],
    samplers: Sequence[SamplerName],
    nfe: Sequence[int],
    options: SamplingOptions,
) -> list[tuple[str, SamplingOptions, int]]:
    """Every row to come: its label, its settings, its number of moves; what cannot be sampled is refused here."""
    plan: list[tuple[str, SamplingOptions, int]] = []
    only: Sequence[SamplerName] = ("ancestral",)
    for role in roles:
        network = bundle.network(role)
        label: str = role or next(name for name in get_args(Role) if getattr(bundle, name) is network)
        for sampler in only if isinstance(network, AutoregressiveLM) else samplers:
            settings = replace(options, role=role, sampler=sampler)
            make_sampler(bundle, settings)
            if is_self_paced(network, sampler):
                numbers: Sequence[int] = [network.length]
            else:
                numbers = [len(options.times) - 1] if options.times else nfe
            plan += [(label, settings, moves) for moves in numbers]
    return plan
