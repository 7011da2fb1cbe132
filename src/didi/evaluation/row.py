"""One finished sample set, measured: the row that tables, figures and ``metrics.json`` are made of."""

import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.evaluation.diversity import (
    bigram_entropy,
    corpus_entropy,
    distinct_n,
    self_bleu,
    sequence_repetition,
    token_entropy,
)
from didi.evaluation.frontier import Interval, mean_interval, perplexity_interval
from didi.evaluation.perplexity import Scores, mean_sample_perplexity, perplexity


@dataclass(frozen=True)
class EvaluationRow:
    """One finished sample set, measured; the fields are those of ``metrics.json``.

    Attributes:
        role: ``student``, ``teacher``, ``autoregressive``, or ``data`` for real text (with ``nfe`` 0).
        sampler: how the samples were drawn.
        nfe: moves of the sampler that were asked for.
        student_passes: passes of the sampled network that each sequence took part in, mean.
        discriminator_passes: the same of the discriminator; 0 without guidance.
        num_samples: sequences, every one of them scored.
        precision: of the categorical draws.
        judge: name of the judge.
        gen_ppl: exp(total NLL / total judge tokens).
        gen_ppl_ci: its 95% bootstrap interval over sequences.
        gen_ppl_mean_sample: mean of per-sample perplexities.
        entropy: mean unigram entropy within a sequence, nats.
        entropy_ci: its 95% bootstrap interval over sequences.
        corpus_entropy: unigram entropy of the set, nats.
        bigram_entropy: entropy of adjacent pairs of the set, nats.
        distinct_4: share of distinct 4-grams in the set.
        seconds_per_sequence: wall time of sampling over sequences.
        tokens_per_second: tokens sampled over wall time.
        nelbo: NELBO per token of the sampled network on held-out data, nats (the exact NLL of an autoregressive one);
            NaN where none was given.
        seed: of the samples.
        machine: what the times were measured on.
        temperature: that the logits were divided by; 1 is exact sampling.
        top_p: share of a token's law that was kept; 1 is exact sampling.
        grid: how the times of the moves were spaced.
        settings: of the sampler, beyond these.
        note: anything that a reader must know about this row.
        repetition_4: share of 4-grams that their own sequence had before, mean; NaN in rows measured before it was.
        self_bleu: BLEU-4 of each sample against the others, mean; NaN for a single sample.
        mauve: MAUVE against real text, in (0, 1]; NaN where it was not asked for.
    """

    role: str
    sampler: str
    nfe: int
    student_passes: float
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

    def record(self) -> dict[str, Any]:
        """Its fields as JSON has them, null for what is not finite."""
        return {key: finite(value) for key, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "EvaluationRow":
        """The row that ``record()`` made; null reads as NaN."""
        return cls(**{key: _read(value) for key, value in record.items()})


@dataclass(frozen=True)
class SampleSet:
    """A sample set with what was measured of it.

    Attributes:
        row: its figures.
        texts: the samples.
        scores: the judge's, of each sample.
        entropies: unigram entropy within each sample, nats.
    """

    row: EvaluationRow
    texts: list[str]
    scores: Scores
    entropies: Float[Tensor, " b"]


def measure(
    role: str,
    sampler: str,
    nfe: int,
    tokens: Int[Tensor, "b l"],
    scores: Scores,
    *,
    judge: str,
    seconds: float,
    student_passes: float,
    discriminator_passes: float = 0.0,
    precision: str = "float64",
    seed: int = 0,
    nelbo: float = math.nan,
    machine: str | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    grid: str = "uniform",
    settings: str = "",
    note: str = "",
    mauve: float = math.nan,
) -> EvaluationRow:
    """The row of a finished sample set.

    Args:
        role: whose samples these are; see ``EvaluationRow``.
        sampler: how they were drawn.
        nfe: moves asked for; 0 for real data.
        tokens: the samples; ``l`` at least 4.
        scores: what a judge says of the same samples, in the same order.
        judge: its name.
        seconds: wall time of drawing all of them, without the judge; NaN where nothing was drawn.
        student_passes: passes of the sampled network per sequence.
        discriminator_passes: passes of the discriminator per sequence.
        precision: of the categorical draws.
        seed: of the samples.
        nelbo: per token, of the sampled network on held-out data.
        machine: what ``seconds`` were measured on; this machine's CPU by default.
        temperature: that the logits were divided by.
        top_p: share of a token's law that was kept.
        grid: how the times of the moves were spaced.
        settings: of the sampler, beyond these.
        note: goes into the row; samples that the judge had to cut are added to it.
        mauve: against real text.

    Raises:
        ValueError: ``tokens`` and ``scores`` differ in number, or sequences are shorter than 4.
    """
    if len(scores.nll) != len(tokens):
        raise ValueError(f"tokens and scores must be of the same samples; got {len(tokens)} and {len(scores.nll)}")
    entropies = token_entropy(tokens)
    if scores.num_truncated:
        cut = f"{scores.num_truncated} samples cut to the judge's context"
        note = f"{note}; {cut}" if note else cut
    return EvaluationRow(
        role=role,
        sampler=sampler,
        nfe=nfe,
        student_passes=student_passes,
        discriminator_passes=discriminator_passes,
        num_samples=len(tokens),
        precision=precision,
        judge=judge,
        gen_ppl=perplexity(scores),
        gen_ppl_ci=perplexity_interval(scores),
        gen_ppl_mean_sample=mean_sample_perplexity(scores),
        entropy=float(entropies.mean()),
        entropy_ci=mean_interval(entropies),
        corpus_entropy=corpus_entropy(tokens),
        bigram_entropy=bigram_entropy(tokens),
        distinct_4=distinct_n(tokens, 4),
        seconds_per_sequence=seconds / len(tokens),
        tokens_per_second=tokens.numel() / seconds,
        nelbo=nelbo,
        seed=seed,
        machine=machine or machine_name(),
        temperature=temperature,
        top_p=top_p,
        grid=grid,
        settings=settings,
        note=note,
        repetition_4=float(sequence_repetition(tokens, 4).mean()),
        self_bleu=self_bleu(tokens) if len(tokens) > 1 else math.nan,
        mauve=mauve,
    )


def finite(value: Any) -> Any:
    """The value as JSON can hold it: null for NaN and infinities, also within an interval."""
    if isinstance(value, tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(value: Any) -> Any:
    """The value that JSON holds, as a row has it."""
    if isinstance(value, list):
        return tuple(_read(item) for item in value)
    return math.nan if value is None else value


def varying_fields(rows: Sequence[EvaluationRow], names: Sequence[str]) -> list[str]:
    """Those of the named fields that are not the same in all rows."""
    return [name for name in names if len({getattr(row, name) for row in rows}) > 1]


def machine_name(device: str | torch.device = "cpu") -> str:
    """What times were measured on, without a host name: ``2-core x86_64 CPU (AMD EPYC), torch 2.13.0, 2 threads``."""
    version = f"torch {torch.__version__.split('+')[0]}"
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {version}, CUDA {torch.version.cuda}"
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    model = found[1].strip() if found else platform.processor()
    cpu = f"{os.cpu_count()}-core {platform.machine()} CPU" + (f" ({model})" if model else "")
    return f"{cpu}, {version}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
