"""Evaluation of a bundle: sample its networks, score the samples, write the report."""

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
from didi.data.markov import CHAINS, EXACT, MarkovChain
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation.checked_sets import checked_sets
from didi.evaluation.divergences import JointReference, divergences, find_reference
from didi.evaluation.diversity import token_entropy
from didi.evaluation.exact.divergences import ExactDivergences
from didi.evaluation.exact.rows import ExactRows
from didi.evaluation.judges import SMOLLM2, load_judge
from didi.evaluation.machine import machine_name
from didi.evaluation.mauve import Embedding, mauve
from didi.evaluation.perplexity import ExactJudge, Judge, Scores
from didi.evaluation.plan import PlannedRow, plan_rows, swept_options
from didi.evaluation.report import write_metrics, write_report, write_samples
from didi.evaluation.row import EvaluationRow, GivenFields, SampleSet, measure
from didi.files import output_folder
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
    """Sample every combination of role, sampler, temperature or top-p, and number of moves, and score all samples.

    Args:
        bundle: from ``didi.load``.
        nfe: one number of moves or several; none to score only ``data`` and ``anchors``.
        num_samples: number of sequences in each row; use 256 or more for metrics that you report.
        judge: one judge or several, as names for ``load_judge`` or as objects; each gives every sample set a row. The
            default is the exact judge of the chain that the bundle was trained on, else ``smollm2-135m``.
        role: one role or several, or that of ``options``; by default the student if there is one, else the teacher.
        sampler: one sampler or several, or that of ``options``. The autoregressive role and the samplers
            ``first-hitting``, ``entropy-bounded`` and ``one-step`` ignore ``nfe`` and have one row.
        temperature: a sweep of temperatures, at the top-p of ``options``; if empty, that of ``options``.
        top_p: a sweep of top-p, at the temperature of ``options``; if empty, that of ``options``.
        seed: random seed of the samples.
        data: held-out rows of tokens of the bundle's tokenizer, for a row of results and each network's NELBO or NLL.
        anchors: further sets to score, by name, for example from ``anchors.anchor_sets``.
        embed: embedding of ``mauve.load_embedding``, for the MAUVE of every row against as many other rows of ``data``.
        joint: True for a ``joint_kl`` of each row, which takes minutes; or a bundle, the reference of these.
        options: sampling options; an option must not be set by an argument above as well.
        out: folder for ``metrics.json``, ``samples.jsonl``, ``report.md`` and its figures.
        on_set: called with each sample set as soon as it is measured.

    Raises:
        UsageError: the bundle, the judge or an argument does not allow the evaluation.
        DidiError: a judge cannot be read or reached, or a package that it needs is not installed.
        OSError: ``out`` cannot be created or written.
    """
    sets = checked_sets(instance("bundle", bundle, Bundle), data, anchors)
    seed, num_samples = whole_number("seed", seed), whole_number("num_samples", num_samples, low=1)
    moves = [whole_number("nfe", number, low=1) for number in listed("nfe", nfe, allows_none=bool(sets))]
    base_options = instance("options", SamplingOptions() if options is None else options, SamplingOptions)
    plan = plan_rows(bundle, role, sampler, moves, swept_options(base_options, temperature, top_p))
    data = sets.get("data")
    with output_folder(folder := None if out is None else Path(out)):
        joint_reference = find_reference(bundle, judges := _judges(bundle, judge), joint, num_samples)
        features = None if embed is None else embed(decode(bundle, _reference_rows(data, num_samples, seed)))
        results = _Results(judges, seed, embed, features, joint_reference, folder, on_set)
        _score_sets(bundle, sets, num_samples, results)
        _sample(bundle, plan, num_samples, data, results)
        results.report(bundle)
    return [sample_set.row for sample_set in results.sets]


@dataclass
class _Results:
    """The measured sample sets of an evaluation.

    Attributes:
        judges: judges; each gives every set a row.
        seed: random seed of the samples.
        embed: embedding of MAUVE; None without MAUVE.
        reference: features of real text under ``embed``.
        joint: reference of the joint divergence; None without it.
        out: folder of the results; None to write nothing.
        on_set: called with each set.
        sets: the sets measured so far.
    """

    judges: Sequence[Judge]
    seed: int
    embed: Embedding | None
    reference: Tensor | None
    joint: JointReference | None
    out: Path | None
    on_set: Callable[[SampleSet], None] | None
    sets: list[SampleSet] = field(default_factory=list)

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
        **given: Unpack[GivenFields],
    ) -> None:
        """Score a set by every judge, and write all results so far.

        Arguments as in ``row.measure``; ``exact`` returns exact divergences of the sampler from the chain of a judge.
        """
        if self.embed is not None and self.reference is not None:
            given["mauve"] = mauve(self.embed(texts), self.reference)
            given["note"] = f"MAUVE in the space of {self.embed.name}"
        given |= {"seed": self.seed}
        log_ratios = None
        if self.joint is not None:
            joint = self.joint.estimate(tokens)
            log_ratios = joint.log_ratios
            given |= {"joint_kl": joint.kl, "joint_kl_ci": joint.ci, "joint_reference": self.joint.name}
        for judge in self.judges:
            scores = _scores(judge, texts, tokens)
            passes = {"seconds": seconds, "network_passes": network_passes}
            fields: GivenFields = given | divergences(tokens, judge)
            if isinstance(judge, ExactJudge) and (exact_fields := exact(judge.chain)) is not None:
                notes = "; ".join(filter(None, [str(fields.get("note", "")), exact_fields.note]))
                fields = fields | cast(GivenFields, asdict(exact_fields) | {"note": notes})
            row = measure(label, sampler, moves, tokens, scores, judge=judge.name, **passes, **fields)
            self.sets.append(SampleSet(row, texts, scores, token_entropy(tokens).cpu(), log_ratios))
            if self.out is not None and process_group().is_main:  # after each set, so that a stopped run keeps them
                write_metrics([sample_set.row for sample_set in self.sets], self.out)
                write_samples(self.sets, self.out)
            if self.on_set is not None:
                self.on_set(self.sets[-1])

    def report(self, bundle: Bundle) -> None:
        """Write ``report.md`` and its figures."""
        if self.out is not None and process_group().is_main:
            recipe = str(bundle.provenance.get("recipe", ""))
            write_report(self.sets, self.out, title=f"Evaluation of {bundle.name}", recipe=recipe)


def _score_sets(bundle: Bundle, sets: Mapping[str, Int[Tensor, "_ l"]], num_samples: int, results: _Results) -> None:
    """Score ``num_samples`` random rows of each set; all rows of a smaller set."""
    for name, tokens in sets.items():
        rows = tokens[_random_order(tokens, results.seed)[:num_samples]]
        results.add(rows, decode(bundle, rows), name, "", 0, seconds=math.nan, network_passes=0.0)


def _sample(
    bundle: Bundle, plan: Sequence[PlannedRow], num_samples: int, data: Int[Tensor, "n l"] | None, results: _Results
) -> None:
    """Draw and measure the sample sets of a plan."""
    for _, settings, num_moves in plan:
        check_batch(bundle, settings, bundle.network(settings.role).length, num_moves, num_samples)
    nats: dict[str, float] = {}
    exact = ExactRows(bundle)
    for label, settings, num_moves in plan:
        network = bundle.network(settings.role)
        device = next(network.parameters()).device
        if data is not None and label not in nats:
            nats[label] = nats_per_token(network, bundle.process, data, batch_size=NELBO_BATCH)
        drawn = generate(bundle, num_samples=num_samples, nfe=num_moves, seed=results.seed, options=settings)
        results.add(
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


def _scores(judge: Judge, texts: Sequence[str], tokens: Int[Tensor, "b l"]) -> Scores:
    """The judge's scores; the texts are divided between the processes of ``didi.process_group``."""
    local = process_group().local_slice(len(texts))
    part = judge.score(texts[local], tokens[local])
    rows = process_group().all_gather_items(list(zip(part.nll.tolist(), part.num_tokens.tolist(), strict=True)))
    nll, num_tokens = zip(*rows, strict=True)
    num_truncated = sum(process_group().all_gather_items([part.num_truncated]))
    return Scores(torch.tensor(nll, dtype=torch.float64), torch.tensor(num_tokens), num_truncated)


def _random_order(rows: Int[Tensor, "n l"], seed: int) -> Int[Tensor, " n"]:
    """A random order of the rows; neighbouring rows come from one document and are similar."""
    return torch.randperm(len(rows), generator=named_generator(seed, "data"))


def _reference_rows(data: Int[Tensor, "n l"] | None, num_samples: int, seed: int) -> Int[Tensor, "m l"]:
    """Rows of the data for MAUVE, disjoint from the rows that ``_score_sets`` scores."""
    if data is None or len(data) < 2 * num_samples:
        raise UsageError(
            f"MAUVE compares with as many further sequences of the data; {num_samples} samples need "
            f"{2 * num_samples}, got {0 if data is None else len(data)}: name a larger corpus or lower the samples"
        )
    return data[_random_order(data, seed)[num_samples : 2 * num_samples]]


def _judges(bundle: Bundle, requested: str | Judge | Sequence[str | Judge] | None) -> list[Judge]:
    """Load the requested judges, each once; ``exact`` names the exact judge of the bundle's chain."""
    corpus = str(bundle.provenance.get("corpus"))
    if not requested:
        requested = corpus if corpus in CHAINS else SMOLLM2
    listed_judges: Sequence[str | Judge] = listed("judge", requested)
    device = next(bundle.network().parameters()).device
    judges: list[Judge] = []
    for each in listed_judges:
        if not isinstance(each, str):
            if not isinstance(each, Judge):
                raise UsageError(f"a judge is a name, or has a name and score(texts, tokens); got {each!r}")
            judges.append(each)
            continue
        if corpus in CHAINS and each in CHAINS and each not in (corpus, EXACT):
            raise UsageError(
                f"judge {each} scores sequences of the chain {each}, and the bundle {bundle.name} was trained on the "
                f"chain {corpus}: use {corpus}"
            )
        name = corpus if corpus in CHAINS and each == EXACT else each
        if name not in [judge.name for judge in judges]:
            judges.append(load_judge(name, device=device))
    return judges
