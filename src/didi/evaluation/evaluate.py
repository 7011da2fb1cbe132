"""From a bundle to measured rows: sample, judge, tell."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from didi.data.source import MARKOV
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation.diversity import token_entropy
from didi.evaluation.judges import SMOLLM2, load_judge
from didi.evaluation.mauve import Embedding, mauve
from didi.evaluation.perplexity import Judge, Scores
from didi.evaluation.report import write_metrics, write_report, write_samples
from didi.evaluation.row import EvaluationRow, SampleSet, machine_name, measure
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle, Role
from didi.models.nelbo import nats_per_token
from didi.sampling.generate import generate
from didi.sampling.options import OWN_SETTINGS, SamplerName, SamplingOptions
from didi.sampling.prompt import decode
from didi.sampling.registry import described, find_sampler, is_self_paced, make_sampler, with_read_options
from didi.world import world

NELBO_BATCH = 32


def evaluate(
    bundle: Bundle,
    *,
    nfe: Sequence[int] = (4, 8, 16),
    num_samples: int = 256,
    judge: str | Judge | Sequence[str | Judge] | None = None,
    role: Role | Sequence[Role] | None = None,
    sampler: SamplerName | Sequence[SamplerName] = "ancestral",
    temperature: Sequence[float] = (),
    top_p: Sequence[float] = (),
    seed: int = 0,
    data: Int[Tensor, "n l"] | None = None,
    anchors: Mapping[str, Int[Tensor, "_ l"]] | None = None,
    embed: Embedding | None = None,
    options: SamplingOptions | None = None,
    out: Path | str | None = None,
    on_set: Callable[[SampleSet], None] | None = None,
) -> list[EvaluationRow]:
    """Sample and score every combination of role, sampler, departure and number of passes; every sample counts.

    Args:
        bundle: from ``didi.load``.
        nfe: numbers of moves; none where only ``data`` and ``anchors`` are to be judged.
        num_samples: sequences in each row; 256 or more for a figure that is to be quoted.
        judge: one or several, each a name for ``load_judge`` or a judge; by default the exact one for a model of the
            ``markov`` world, else ``smollm2-135m``. Each gives every sample set a row.
        role: one or several; by default the student if there is one, else the teacher.
        sampler: one or several. Whatever ``nfe`` says, the autoregressive role has one row, and the self-paced
            samplers ``first-hitting`` and ``entropy-bounded`` too.
        temperature: a sweep of them, at the top-p of ``options``; that of ``options`` alone where empty.
        top_p: a sweep of them, at the temperature of ``options``; that of ``options`` alone where empty.
        seed: of the samples.
        data: held-out token sequences of the bundle's tokenizer; they are judged in a row of their own, and give each
            network's NELBO (exact NLL for the autoregressive one).
        anchors: further sets to judge, by name, such as those of ``anchors.anchor_sets``.
        embed: from ``mauve.load_embedding``: gives every row its MAUVE against as many other rows of ``data``.
        options: further sampling options; role and sampler come from the arguments above.
        out: folder for ``metrics.json``, ``samples.jsonl``, ``report.md`` and its figures.
        on_set: called with each sample set as soon as it is measured.

    Raises:
        UsageError: the bundle, the judge or an argument does not allow it.
    """
    roles: Sequence[Role | None] = [role] if role is None or isinstance(role, str) else role
    samplers = [sampler] if isinstance(sampler, str) else sampler
    if min(nfe, default=1) < 1 or num_samples < 1 or not (nfe or data is not None or anchors):
        raise UsageError(f"nfe and num_samples are 1 or more; got {list(nfe)} and {num_samples}")
    base = options or SamplingOptions()
    departures = [replace(base, temperature=value) for value in temperature] + [replace(base, top_p=p) for p in top_p]
    each = dict.fromkeys(departures or [base]) if nfe else ()
    plan = [planned for one in each for planned in _plan(bundle, roles, samplers, nfe, one)]
    sets = ({} if data is None else {"data": data}) | dict(anchors or {})
    for tokens in sets.values():
        if int(tokens.max()) >= (num_symbols := bundle.network().vocab_size):
            raise UsageError(
                f"data are tokens of the bundle's own {num_symbols} symbols; got token {int(tokens.max())}"
            )
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)  # a folder that cannot be written fails now, not after the work
    reference = None if embed is None else embed(decode(bundle, _reference_rows(data, num_samples, seed)))
    judges = _judges(bundle, judge)
    results: list[SampleSet] = []

    def add(tokens: Int[Tensor, "b l"], texts: list[str], label: str, sampler: str, moves: int, **about: Any) -> None:
        if embed is not None and reference is not None:
            about |= {"mauve": mauve(embed(texts), reference), "note": f"MAUVE in the space of {embed.name}"}
        for one in judges:
            scores = _scores(one, texts, tokens)
            row = measure(label, sampler, moves, tokens, scores, judge=one.name, seed=seed, **about)
            results.append(SampleSet(row, texts, scores, token_entropy(tokens).cpu()))
            if out is not None and world().is_main:  # a run that is stopped keeps what it has measured
                write_metrics([result.row for result in results], Path(out))
                write_samples(results, Path(out))
            if on_set is not None:
                on_set(results[-1])

    for name, tokens in sets.items():
        chosen = tokens[_random_order(tokens, seed)[:num_samples]]
        add(chosen, decode(bundle, chosen), name, "", 0, seconds=math.nan, student_passes=0.0)
    nats: dict[str, float] = {}
    for label, settings, num_moves in plan:
        network = bundle.network(settings.role)
        device = next(network.parameters()).device
        if data is not None and label not in nats:
            nats[label] = nats_per_token(network, bundle.process, data, batch_size=NELBO_BATCH)
        drawn = generate(bundle, num_samples=num_samples, nfe=num_moves, seed=seed, options=settings)
        add(
            drawn.tokens,
            drawn.texts,
            label,
            settings.sampler,
            num_moves,
            seconds=drawn.seconds,
            student_passes=float(drawn.network_passes.double().mean()),
            discriminator_passes=float(drawn.discriminator_passes.double().mean()),
            precision=drawn.precision,
            nelbo=nats.get(label, math.nan),
            machine=machine_name(device),
            temperature=settings.temperature,
            top_p=settings.top_p,
            grid="given" if settings.times else settings.grid,
            settings=described(settings),
        )
    if out is not None and world().is_main:
        recipe = str(bundle.provenance.get("recipe", ""))
        write_report(results, Path(out), title=f"Evaluation of {bundle.name}", recipe=recipe)
    return [result.row for result in results]


def _scores(judge: Judge, texts: Sequence[str], tokens: Int[Tensor, "b l"]) -> Scores:
    """The judge's scores; the processes of ``didi.world`` share the texts."""
    mine = world().share(len(texts))
    part = judge.score(texts[mine], tokens[mine])
    rows = world().joined_items(list(zip(part.nll.tolist(), part.num_tokens.tolist(), strict=True)))
    nll, num_tokens = zip(*rows, strict=True)
    num_truncated = sum(world().joined_items([part.num_truncated]))
    return Scores(torch.tensor(nll, dtype=torch.float64), torch.tensor(num_tokens), num_truncated)


def _random_order(rows: Int[Tensor, "n l"], seed: int) -> Int[Tensor, " n"]:
    """Neighbouring rows come from one document and are alike, so rows are chosen at random."""
    return torch.randperm(len(rows), generator=named_generator(seed, "data"))


def _reference_rows(data: Int[Tensor, "n l"] | None, num_samples: int, seed: int) -> Int[Tensor, "m l"]:
    """Real rows beyond those that get a row of their own."""
    if data is None or len(data) < 2 * num_samples:
        raise UsageError(
            f"MAUVE compares with as many further sequences of the data; {num_samples} samples need "
            f"{2 * num_samples}, got {0 if data is None else len(data)}: name a larger corpus or lower the samples"
        )
    return data[_random_order(data, seed)[num_samples : 2 * num_samples]]


def _judges(bundle: Bundle, asked: str | Judge | Sequence[str | Judge] | None) -> list[Judge]:
    """The judges that are asked for, loaded."""
    if not asked:
        asked = MARKOV if bundle.provenance.get("corpus") == MARKOV else SMOLLM2
    each = [asked] if isinstance(asked, str | Judge) else asked
    device = next(bundle.network().parameters()).device
    return [load_judge(one, device=device) if isinstance(one, str) else one for one in each]


def _refuse_unread(samplers: Sequence[SamplerName], options: SamplingOptions, process: str) -> None:
    """Refuse a setting that none of the samplers reads."""
    reads = set().union(*(find_sampler(sampler, process).reads for sampler in samplers))
    for name in OWN_SETTINGS:
        if getattr(options, name) is not None and name not in reads:
            raise UsageError(f"none of {', '.join(samplers)} reads {name}; leave it out or add its sampler")


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
    _refuse_unread(samplers, options, bundle.process.name)
    for role in roles:
        network = bundle.network(role)
        label: str = role or next(name for name in get_args(Role) if getattr(bundle, name) is network)
        for sampler in only if isinstance(network, AutoregressiveLM) else samplers:
            settings = with_read_options(replace(options, role=role, sampler=sampler), bundle)
            make_sampler(bundle, settings)
            if is_self_paced(network, sampler):
                numbers: Sequence[int] = [network.length]
            else:
                numbers = [len(options.times) - 1] if options.times else nfe
            plan += [(label, settings, moves) for moves in numbers]
    return plan
