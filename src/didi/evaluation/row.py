"""Evaluation rows: the metrics of one sample set, for tables, figures and ``metrics.json``."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

from jaxtyping import Float, Int
from torch import Tensor

from didi.evaluation.divergences import DivergenceFields
from didi.evaluation.diversity import (
    bigram_entropy,
    corpus_entropy,
    distinct_n,
    self_bleu,
    sequence_repetition,
    token_entropy,
)
from didi.evaluation.frontier import NAN_INTERVAL, Interval, mean_interval, perplexity_interval
from didi.evaluation.machine import machine_name
from didi.evaluation.perplexity import Scores, mean_sample_perplexity, perplexity

WORDS = {
    "role": "{}",
    "sampler": "{}",
    "nfe": "{} NFE",
    "temperature": "temperature {:g}",
    "top_p": "top-p {:g}",
    "judge": "judge {}",
    "precision": "{}",
    "grid": "{} time grid",
    "num_samples": "{} samples",
    "seed": "seed {}",
}
"""Format of each field in a label, in the order of a label."""
DETAILS = ("judge", "precision", "grid", "num_samples", "seed")
"""Fields that a label shows only on request, for rows that differ in them."""
RENAMED = {"student_passes": "network_passes"}
"""Present names of renamed fields, by their names in older ``metrics.json`` files."""


@dataclass(frozen=True)
class EvaluationRow:
    """Metrics of one sample set; the fields are those of ``metrics.json``.

    Attributes:
        role: ``student``, ``teacher`` or ``autoregressive``; with ``nfe`` 0 ``data`` for real text, or the name of
            another set that was not sampled, such as an anchor.
        sampler: Name of the sampler; empty if ``nfe`` is 0.
        nfe: Requested number of sampling steps; 0 for text that was not sampled.
        network_passes: Mean number of passes of the sampled network per sequence.
        discriminator_passes: Mean number of discriminator passes per sequence; 0 without guidance.
        num_samples: Number of sequences; all are scored.
        precision: Precision of the categorical draws.
        judge: Name of the judge.
        gen_ppl: exp(total NLL / total judge tokens).
        gen_ppl_ci: 95% bootstrap interval of ``gen_ppl`` over sequences.
        gen_ppl_mean_sample: Mean of the perplexities of the samples.
        entropy: Mean unigram entropy within a sequence, nats.
        entropy_ci: 95% bootstrap interval of ``entropy`` over sequences.
        corpus_entropy: Unigram entropy of the whole set, nats.
        bigram_entropy: Entropy of adjacent token pairs of the whole set, nats.
        distinct_4: Fraction of the 4-grams of the set that are distinct.
        seconds_per_sequence: Wall time of sampling divided by the number of sequences.
        tokens_per_second: Sampled tokens divided by the wall time of sampling.
        nelbo: NELBO per token of the sampled network on held-out data, nats (exact NLL for an autoregressive network);
            NaN if no data were given.
        seed: Random seed of the samples.
        machine: Hardware and software on which the times were measured.
        temperature: Divisor of the logits; 1 is exact sampling.
        top_p: Probability mass of each token's distribution that was kept; 1 is exact sampling.
        grid: Spacing of the times of the sampling steps; ``given`` for explicit times.
        settings: Further settings of the sampler, as text.
        note: Remarks on this row.
        repetition_4: Mean fraction of 4-grams that occurred before in the same sequence; NaN in rows of older versions.
        self_bleu: Mean BLEU-4 of each sample against the others; NaN for a single sample.
        mauve: MAUVE against real text, in (0, 1]; NaN if it was not requested.
        kl: Exact KL(sampler || data) in nats a sequence, by enumeration; this and the next three are NaN where the
            sampler's distribution is not known (see ``exact.rows``), and carry no sampling error.
        reverse_kl: Exact KL(data || sampler), nats a sequence; infinite, null in ``metrics.json``, where the sampler
            never draws a sequence of the data, as with top-p.
        total_variation: Exact total variation between sampler and data, in [0, 1].
        joint_entropy: Exact entropy of the sampler over whole sequences, nats a sequence.
        pair_kl: KL(samples || chain) of adjacent pairs of symbols, nats per pair; NaN without a Markov chain.
        pair_kl_ci: Its 95% jackknife interval over sequences.
        pair_reverse_kl: KL(chain || samples) of adjacent pairs, nats per pair.
        pair_reverse_kl_ci: Its 95% jackknife interval.
        triple_kl: KL(samples || chain) of adjacent triples of symbols, nats per triple.
        triple_kl_ci: Its 95% jackknife interval.
        triple_reverse_kl: KL(chain || samples) of adjacent triples, nats per triple.
        triple_reverse_kl_ci: Its 95% jackknife interval.
        joint_kl: Estimate of KL(samples || reference) of whole sequences by a fitted network, nats per sequence, a
            lower bound in expectation; NaN if it was not requested.
        joint_kl_ci: Its 95% bootstrap interval over sequences.
        joint_reference: What ``joint_kl`` is measured from: ``markov``, ``exact`` or the name of a bundle.
    """

    role: str
    sampler: str
    nfe: int
    network_passes: float
    discriminator_passes: float
    num_samples: int
    precision: str
    judge: str
    gen_ppl: float
    gen_ppl_ci: Interval
    gen_ppl_mean_sample: float
    entropy: float
    entropy_ci: Interval
    corpus_entropy: float
    bigram_entropy: float
    distinct_4: float
    seconds_per_sequence: float
    tokens_per_second: float
    nelbo: float
    seed: int
    machine: str
    temperature: float = 1.0
    top_p: float = 1.0
    grid: str = "uniform"
    settings: str = ""
    note: str = ""
    repetition_4: float = math.nan
    self_bleu: float = math.nan
    mauve: float = math.nan
    kl: float = math.nan
    reverse_kl: float = math.nan
    total_variation: float = math.nan
    joint_entropy: float = math.nan
    pair_kl: float = math.nan
    pair_kl_ci: Interval = NAN_INTERVAL
    pair_reverse_kl: float = math.nan
    pair_reverse_kl_ci: Interval = NAN_INTERVAL
    triple_kl: float = math.nan
    triple_kl_ci: Interval = NAN_INTERVAL
    triple_reverse_kl: float = math.nan
    triple_reverse_kl_ci: Interval = NAN_INTERVAL
    joint_kl: float = math.nan
    joint_kl_ci: Interval = NAN_INTERVAL
    joint_reference: str = ""

    def label(self, *, omit: Collection[str] = (), also: Collection[str] = ()) -> str:
        """Label of the row, for example ``student, ancestral, 8 NFE, temperature 0.9``.

        It names the role, the sampler, the NFE, and temperature and top-p other than 1. Text that was not sampled has
        a role alone.

        Args:
            omit: Fields to leave out because they are shown elsewhere.
            also: Further fields to show, names in ``DETAILS``.
        """
        names = ["role"]
        if self.nfe:
            names += ["sampler", "nfe", *(name for name in ("temperature", "top_p") if getattr(self, name) != 1)]
        names += [name for name in DETAILS if name in also]
        return ", ".join(WORDS[name].format(getattr(self, name)) for name in names if name not in omit)

    def record(self) -> dict[str, Any]:
        """Returns the fields as JSON values; numbers that are not finite become null."""
        return {key: finite(value) for key, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "EvaluationRow":
        """Returns the row whose ``record()`` is given; null becomes NaN."""
        return cls(**{RENAMED.get(key, key): _read(value) for key, value in record.items()})


@dataclass(frozen=True)
class SampleSet:
    """A sample set and its metrics.

    Attributes:
        row: Metrics of the set.
        texts: The samples.
        scores: The judge's score of each sample.
        entropies: Unigram entropy within each sample, nats.
        log_ratios: Field of ``joint.JointEstimate``, nats; None if the joint divergence was not requested.
    """

    row: EvaluationRow
    texts: list[str]
    scores: Scores
    entropies: Float[Tensor, " b"]
    log_ratios: Float[Tensor, " b"] | None = None


class GivenFields(DivergenceFields, total=False):
    """Fields of ``EvaluationRow`` of the same names that ``measure`` does not compute.

    The defaults describe samples drawn exactly in float64 with seed 0 and without guidance, on the CPU of this machine.
    """

    discriminator_passes: float
    precision: str
    seed: int
    nelbo: float
    machine: str
    temperature: float
    top_p: float
    grid: str
    settings: str
    note: str
    mauve: float
    kl: float
    reverse_kl: float
    total_variation: float
    joint_entropy: float


def measure(
    role: str,
    sampler: str,
    nfe: int,
    tokens: Int[Tensor, "b l"],
    scores: Scores,
    *,
    judge: str,
    seconds: float,
    network_passes: float,
    **given: Unpack[GivenFields],
) -> EvaluationRow:
    """Compute the evaluation row of a sample set.

    Args:
        role: Role of the sampled network; see ``EvaluationRow``.
        sampler: Name of the sampler.
        nfe: Requested number of sampling steps; 0 for real data.
        tokens: The samples; ``l`` is at least 4.
        scores: A judge's scores of the same samples, in the same order.
        judge: Name of the judge.
        seconds: Wall time of sampling, without the judge; NaN for text that was not sampled.
        network_passes: Passes of the sampled network per sequence.
        given: Further fields of the row. The number of samples that the judge truncated is appended to ``note``.

    Raises:
        ValueError: ``tokens`` and ``scores`` differ in number, or the sequences are shorter than 4.
    """
    if len(scores.nll) != len(tokens):
        raise ValueError(f"tokens and scores must be of the same samples; got {len(tokens)} and {len(scores.nll)}")
    known: GivenFields = {"discriminator_passes": 0.0, "precision": "float64", "seed": 0, "nelbo": math.nan}
    known |= {"machine": machine_name()} | given
    if scores.num_truncated:
        cut = f"{scores.num_truncated} samples cut to the judge's context"
        known["note"] = f"{given['note']}; {cut}" if given.get("note") else cut
    return EvaluationRow(
        role=role,
        sampler=sampler,
        nfe=nfe,
        network_passes=network_passes,
        num_samples=len(tokens),
        judge=judge,
        seconds_per_sequence=seconds / len(tokens),
        tokens_per_second=tokens.numel() / seconds,
        **_metrics(tokens, scores),
        **known,
    )


def _metrics(tokens: Int[Tensor, "b l"], scores: Scores) -> dict[str, Any]:
    """Perplexity, entropies and diversity of a sample set, by the fields of ``EvaluationRow``."""
    entropies = token_entropy(tokens)
    return {
        "gen_ppl": perplexity(scores),
        "gen_ppl_ci": perplexity_interval(scores),
        "gen_ppl_mean_sample": mean_sample_perplexity(scores),
        "entropy": float(entropies.mean()),
        "entropy_ci": mean_interval(entropies),
        "corpus_entropy": corpus_entropy(tokens),
        "bigram_entropy": bigram_entropy(tokens),
        "distinct_4": distinct_n(tokens, 4),
        "repetition_4": float(sequence_repetition(tokens, 4).mean()),
        "self_bleu": self_bleu(tokens) if len(tokens) > 1 else math.nan,
    }


def finite(value: Any) -> Any:
    """Returns the value as JSON can represent it: None for NaN and infinities, also within an interval."""
    if isinstance(value, tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(value: Any) -> Any:
    """Inverse of ``finite``: NaN for None, a tuple for a list."""
    if isinstance(value, list):
        return tuple(_read(item) for item in value)
    return math.nan if value is None else value


def varying_fields(rows: Sequence[EvaluationRow], names: Sequence[str]) -> list[str]:
    """Returns the names of those fields whose values differ between the rows."""
    return [name for name in names if len({getattr(row, name) for row in rows}) > 1]
