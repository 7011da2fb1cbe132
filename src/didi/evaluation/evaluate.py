"""From a bundle to measured rows: sample, judge, report."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Unpack, cast

import torch
from jaxtyping import Int
from torch import Tensor

from didi.arguments import instance, listed, whole_number
from didi.data.markov import EXACT, WORLDS, MarkovChain
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation.divergences import JointReference, divergences, find_reference
from didi.evaluation.diversity import token_entropy
from didi.evaluation.exact.divergences import ExactDivergences
from didi.evaluation.exact.rows import ExactRows
from didi.evaluation.given_sets import given_sets
from didi.evaluation.judges import SMOLLM2, load_judge
from didi.evaluation.machine import machine_name
from didi.evaluation.mauve import Embedding, mauve
from didi.evaluation.perplexity import ExactJudge, Judge, Scores
from didi.evaluation.plan import PlannedRow, departures, plan_rows
from didi.evaluation.report import write_metrics, write_report, write_samples
from didi.evaluation.row import Circumstances, EvaluationRow, SampleSet, measure
from didi.models.bundle import Bundle, Role
from didi.models.nelbo import nats_per_token
from didi.process_group import process_group
from didi.sampling.generate import generate
from didi.sampling.memory import check_batch
from didi.sampling.options import SamplerName, SamplingOptions
from didi.sampling.prompt import decode
from didi.sampling.registry import settings_text
from didi.torch_defaults import with_torch_defaults

NELBO_BATCH = 32


@with_torch_defaults
def evaluate(
    bundle: Bundle,
    *,
    nfe: int | Sequence[int] = (4, 8, 16),
    num_samples: int = 256,
    judge: str | Judge | Sequence[str | Judge] | None = None,
    role: Role | Sequence[Role] | None = None,
    sampler: SamplerName | Sequence[SamplerName] | None = None,
    temperature: Sequence[float] = (),
    top_p: Sequence[float] = (),
    seed: int = 0,
    data: Int[Tensor, "n l"] | None = None,
    anchors: Mapping[str, Int[Tensor, "_ l"]] | None = None,
    embed: Embedding | None = None,
    joint: bool | Bundle = False,
    options: SamplingOptions | None = None,
    out: Path | str | None = None,
    on_set: Callable[[SampleSet], None] | None = None,
) -> list[EvaluationRow]:
    """Sample and score every combination of role, sampler, departure and number of passes; every sample counts.

    Args:
        bundle: from ``didi.load``.
        nfe: one or several numbers of moves; none where only ``data`` and ``anchors`` are to be judged.
        num_samples: sequences in each row; 256 or more for a figure that is to be quoted.
        judge: one or several, names for ``load_judge`` or judges; ``exact`` is that of the bundle's own world, and
            the default for a model of one, else ``smollm2-135m``. Each gives every sample set a row.
        role: one or several, or that of ``options``; by default the student if there is one, else the teacher.
        sampler: one or several, or that of ``options``. Whatever ``nfe`` says, the autoregressive role and the
            self-paced samplers ``first-hitting`` and ``entropy-bounded`` have one row.
        temperature: a sweep of them, at the top-p of ``options``; that of ``options`` alone where empty.
        top_p: a sweep of them, at the temperature of ``options``; that of ``options`` alone where empty.
        seed: of the samples.
        data: held-out token sequences of the bundle's tokenizer; they are judged in a row of their own, and give each
            network's NELBO (exact NLL for the autoregressive one).
        anchors: further sets to judge, by name, such as those of ``anchors.anchor_sets``.
        embed: from ``mauve.load_embedding``: gives every row its MAUVE against as many other rows of ``data``.
        joint: gives every row its ``joint_kl``, in minutes; True, or a bundle: see ``divergences.find_reference``.
        options: sampling options; none of them may be given by an argument above as well.
        out: folder for ``metrics.json``, ``samples.jsonl``, ``report.md`` and its figures.
        on_set: called with each sample set as soon as it is measured.

    Raises:
        UsageError: the bundle, the judge or an argument does not allow it.
    """
    sets = given_sets(instance("bundle", bundle, Bundle), data, anchors)
    seed, num_samples = whole_number("seed", seed), whole_number("num_samples", num_samples, low=1)
    moves = [whole_number("nfe", one, low=1) for one in listed("nfe", nfe, allows_none=bool(sets))]
    chosen = instance("options", SamplingOptions() if options is None else options, SamplingOptions)
    plan = plan_rows(bundle, role, sampler, moves, departures(chosen, temperature, top_p))
    folder = _made(out)  # a folder that cannot be written fails now, not after the work
    distant = find_reference(bundle, judges := _judges(bundle, judge), joint, num_samples)
    reference = None if embed is None else embed(decode(bundle, _reference_rows(sets.get("data"), num_samples, seed)))
    measured = _Measured(judges, seed, embed, reference, distant, folder, on_set)
    _judge_given(bundle, sets, num_samples, measured)
    _sample(bundle, plan, num_samples, sets.get("data"), measured)
    measured.report(bundle)
    return [result.row for result in measured.results]


@dataclass
class _Measured:
    """The sample sets that are measured, kept as they come.

    Attributes:
        judges: each gives every set a row.
        seed: of the samples.
        embed: of MAUVE, if it is wanted.
        reference: real text in the space of ``embed``.
        joint: what the joint divergence is measured from, if it is wanted.
        out: folder of what is written.
        on_set: called with each set.
        results: the sets so far.
    """

    judges: Sequence[Judge]
    seed: int
    embed: Embedding | None
    reference: Tensor | None
    joint: JointReference | None
    out: Path | None
    on_set: Callable[[SampleSet], None] | None
    results: list[SampleSet] = field(default_factory=list)

    def add(
        self,
        tokens: Int[Tensor, "b l"],
        texts: list[str],
        label: str,
        sampler: str,
        moves: int,
        *,
        seconds: float,
        network_passes: float,
        exact: Callable[[MarkovChain], ExactDivergences | None] = lambda _: None,
        **about: Unpack[Circumstances],
    ) -> None:
        """Score a set by every judge, and write what is measured so far.

        Arguments are those of ``row.measure``; ``exact`` gives divergences of the sampler from the chain of a judge.
        """
        if self.embed is not None and self.reference is not None:
            about["mauve"] = mauve(self.embed(texts), self.reference)
            about["note"] = f"MAUVE in the space of {self.embed.name}"
        about |= {"seed": self.seed}
        log_ratios = None
        if self.joint is not None:
            joint = self.joint.estimate(tokens)
            log_ratios = joint.log_ratios
            about |= {"joint_kl": joint.kl, "joint_kl_ci": joint.ci, "joint_reference": self.joint.name}
        for one in self.judges:
            scores = _scores(one, texts, tokens)
            passes = {"seconds": seconds, "network_passes": network_passes}
            known: Circumstances = about | divergences(tokens, one)
            if isinstance(one, ExactJudge) and (found := exact(one.chain)) is not None:
                notes = "; ".join(filter(None, [str(known.get("note", "")), found.note]))
                known = known | cast(Circumstances, asdict(found) | {"note": notes})
            row = measure(label, sampler, moves, tokens, scores, judge=one.name, **passes, **known)
            self.results.append(SampleSet(row, texts, scores, token_entropy(tokens).cpu(), log_ratios))
            if self.out is not None and process_group().is_main:  # a run that is stopped keeps what it has measured
                write_metrics([result.row for result in self.results], self.out)
                write_samples(self.results, self.out)
            if self.on_set is not None:
                self.on_set(self.results[-1])

    def report(self, bundle: Bundle) -> None:
        """Write the report."""
        if self.out is not None and process_group().is_main:
            recipe = str(bundle.provenance.get("recipe", ""))
            write_report(self.results, self.out, title=f"Evaluation of {bundle.name}", recipe=recipe)


def _judge_given(bundle: Bundle, sets: Mapping[str, Int[Tensor, "_ l"]], num_samples: int, measured: _Measured) -> None:
    """Measure as many rows of each given set as there are samples."""
    for name, tokens in sets.items():
        rows = tokens[_random_order(tokens, measured.seed)[:num_samples]]
        measured.add(rows, decode(bundle, rows), name, "", 0, seconds=math.nan, network_passes=0.0)


def _sample(
    bundle: Bundle, plan: Sequence[PlannedRow], num_samples: int, data: Int[Tensor, "n l"] | None, measured: _Measured
) -> None:
    """Draw and measure the sets of a plan."""
    for _, settings, num_moves in plan:
        check_batch(bundle, settings, bundle.network(settings.role).length, num_moves, num_samples)
    nats: dict[str, float] = {}
    exact = ExactRows(bundle)
    for label, settings, num_moves in plan:
        network = bundle.network(settings.role)
        device = next(network.parameters()).device
        if data is not None and label not in nats:
            nats[label] = nats_per_token(network, bundle.process, data, batch_size=NELBO_BATCH)
        drawn = generate(bundle, num_samples=num_samples, nfe=num_moves, seed=measured.seed, options=settings)
        measured.add(
            drawn.tokens,
            drawn.texts,
            label,
            settings.sampler,
            num_moves,
            exact=partial(exact, options=settings, num_moves=num_moves),
            seconds=drawn.seconds,
            network_passes=float(drawn.network_passes.double().mean()),
            discriminator_passes=float(drawn.discriminator_passes.double().mean()),
            precision=drawn.precision,
            nelbo=nats.get(label, math.nan),
            machine=machine_name(device),
            temperature=settings.temperature,
            top_p=settings.top_p,
            grid="given" if settings.times else settings.grid,
            settings=settings_text(settings),
        )


def _made(out: Path | str | None) -> Path | None:
    """The folder of the results, made if it does not exist."""
    if out is None:
        return None
    Path(out).mkdir(parents=True, exist_ok=True)
    return Path(out)


def _scores(judge: Judge, texts: Sequence[str], tokens: Int[Tensor, "b l"]) -> Scores:
    """The judge's scores; the processes of ``didi.process_group`` share the texts."""
    mine = process_group().local_slice(len(texts))
    part = judge.score(texts[mine], tokens[mine])
    rows = process_group().all_gather_items(list(zip(part.nll.tolist(), part.num_tokens.tolist(), strict=True)))
    nll, num_tokens = zip(*rows, strict=True)
    num_truncated = sum(process_group().all_gather_items([part.num_truncated]))
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
    """The judges that are asked for, loaded; ``exact`` is that of the bundle's own world."""
    own = str(bundle.provenance.get("corpus"))
    if not asked:
        asked = own if own in WORLDS else SMOLLM2
    each: Sequence[str | Judge] = listed("judge", asked)
    device = next(bundle.network().parameters()).device
    judges: list[Judge] = []
    for one in each:
        if not isinstance(one, str):
            if not isinstance(one, Judge):
                raise UsageError(f"a judge is a name, or has a name and score(texts, tokens); got {one!r}")
            judges.append(one)
            continue
        if own in WORLDS and one in WORLDS and one not in (own, EXACT):
            raise UsageError(f"judge {one} reads the {one} world, and {bundle.name} is of the {own} world: use {own}")
        name = own if own in WORLDS and one == EXACT else one
        if name not in [judge.name for judge in judges]:  # named twice, it is one
            judges.append(load_judge(name, device=device))
    return judges
