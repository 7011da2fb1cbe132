"""Paired comparison of two sample sets drawn with the same seeds; the noise that they share cancels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from didi.errors import UsageError
from didi.evaluation.frontier import Interval, bootstrap_interval, mean_interval
from didi.evaluation.joint import JointComparison, compare_joint
from didi.evaluation.perplexity import perplexity
from didi.evaluation.row import DETAILS, EvaluationRow, SampleSet, varying_fields
from didi.evaluation.sweeps import is_autoregressive
from didi.markdown import markdown_table

NUM_PERMUTATIONS = 9999
CHUNK = 1000  # permutations at a time, to bound memory

SHARED_BY_PAIRS = ("nfe", "temperature", "top_p", "grid", "judge", "seed", "num_samples")
"""Row fields that are equal in two sets whose samples are compared pair by pair."""
KIND = ("role", "sampler", "settings", "precision", *SHARED_BY_PAIRS)
"""Row fields that are equal in two sets of different models that are compared."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of two sample sets drawn with the same seeds.

    Attributes:
        perplexity_ratio: corpus perplexity of the first set divided by that of the second.
        perplexity_ratio_ci: its 95% bootstrap interval; pairs of samples are resampled together.
        p_value: p-value of equal perplexities, from random swaps within pairs; two-sided, in (0, 1]; NaN if a text
            has probability 0.
        entropy_gap: mean entropy of the first set minus that of the second, nats.
        entropy_gap_ci: its 95% bootstrap interval.
        joint: comparison of the joint divergences; None unless both sets have one from the same reference.
    """

    perplexity_ratio: float
    perplexity_ratio_ci: Interval
    p_value: float
    entropy_gap: float
    entropy_gap_ci: Interval
    joint: JointComparison | None = None


def compare_pairs(first: SampleSet, second: SampleSet, *, seed: int = 0) -> Comparison:
    """Compare two sample sets whose i-th samples were drawn with the same noise.

    Args:
        first: the first set.
        second: the second set, of the same size.
        seed: random seed of the resampling and the permutations.

    Raises:
        ValueError: the sets differ in size.
    """
    if len(first.entropies) != len(second.entropies):
        raise ValueError(f"pairs need sets of one size; got {len(first.entropies)} and {len(second.entropies)}")
    columns = torch.stack(
        [first.scores.nll, first.scores.num_tokens.double(), second.scores.nll, second.scores.num_tokens.double()], 1
    )
    gap = first.entropies - second.entropies
    joint, has_same_reference = None, first.row.joint_reference == second.row.joint_reference
    if has_same_reference and first.log_ratios is not None and second.log_ratios is not None:
        joint = compare_joint(first.log_ratios, second.log_ratios, seed=seed)
    return Comparison(
        perplexity_ratio=perplexity(first.scores) / perplexity(second.scores),
        perplexity_ratio_ci=bootstrap_interval(columns, lambda totals: _log_ratio(totals).exp(), seed=seed),
        p_value=_permutation_p_value(columns, seed),
        entropy_gap=float(gap.mean()),
        entropy_gap_ci=mean_interval(gap, seed=seed),
        joint=joint,
    )


def comparison_table(sets: Sequence[SampleSet]) -> str | None:
    """Compare each sample set with a baseline of equal ``SHARED_BY_PAIRS`` fields, as a Markdown table.

    The baseline is the set of the teacher's ancestral sampler if there is one, else the first set with equal fields.

    Returns:
        The table; None if no two sets can be compared.
    """
    details = varying_fields([sample_set.row for sample_set in sets if sample_set.row.nfe], DETAILS)
    comparisons = [
        (sample_set.row.label(also=details), base.row.label(also=details), compare_pairs(sample_set, base))
        for sample_set in sets
        if sample_set.row.nfe and (base := _baseline(sample_set, sets)) is not sample_set
    ]
    return _table(comparisons) if comparisons else None


def models_table(models: Mapping[str, Sequence[SampleSet]]) -> str:
    """Compare each model with the first model, for all pairs of sets with equal ``KIND`` fields, as a Markdown table.

    Samples of an autoregressive network do not share noise with samples of a diffusion network, so such models are
    compared at equal entropy only (``sweeps.models_at_equal_entropy``).

    Args:
        models: the sample sets of two models or more, by name.

    Raises:
        UsageError: a later model has no set that can be compared with a set of the first model.
    """
    (first, bases), *others = models.items()
    sampled = [sample_set for sets in models.values() for sample_set in sets if sample_set.row.nfe]
    details = varying_fields([sample_set.row for sample_set in sampled], DETAILS)
    comparisons, unmatched = [], []
    for name, sets in others:
        drawn = [sample_set for sample_set in sets if sample_set.row.nfe]
        matches = [[base for base in bases if _kind(base.row) == _kind(sample_set.row)] for sample_set in drawn]
        has_autoregressive = [any(is_autoregressive(sample_set.row) for sample_set in each) for each in (drawn, bases)]
        if not any(matches) and has_autoregressive[0] == has_autoregressive[1]:
            raise UsageError(
                f"models are compared where role, sampler and its settings, moves, judge, seed and number of samples "
                f"are equal; {name} has no set like one of {first}{_nearest_difference(drawn, bases)}: measure both "
                "with the same flags"
            )
        for sample_set, matching in zip(drawn, matches, strict=True):
            label = f"{name}: {sample_set.row.label(also=details)}"
            comparisons += [(label, first, compare_pairs(sample_set, base)) for base in matching]
            unmatched += [] if matching else [label]
    table = f"{_table(comparisons)}\n" if comparisons else ""
    return f"{table}Not in {first}: {'; '.join(unmatched)}.\n" if unmatched else table.removesuffix("\n")


def _table(comparisons: Sequence[tuple[str, str, Comparison]]) -> str:
    header = ["", "against", "perplexity ratio [95% CI]", "p", "entropy gap [95% CI]"]
    has_joint = any(comparison.joint is not None for _, _, comparison in comparisons)
    header += ["joint KL gap [95% CI]", "joint KL ratio [95% CI]"] if has_joint else []
    rows = []
    for label, base_label, comparison in comparisons:
        (low, high), (gap_low, gap_high) = comparison.perplexity_ratio_ci, comparison.entropy_gap_ci
        ratio = f"{comparison.perplexity_ratio:.3f} [{low:.3f}, {high:.3f}]"
        gap = f"{comparison.entropy_gap:+.3f} [{gap_low:+.3f}, {gap_high:+.3f}]"
        joint = _joint_cells(comparison.joint) if has_joint else []
        rows.append([label, base_label, ratio, f"{comparison.p_value:.4f}", gap, *joint])
    lines = markdown_table(header, rows, num_left=2)
    lines.append(
        "\nSamples of the same seed are compared pair by pair: p is the p-value of equal perplexities "
        f"({NUM_PERMUTATIONS:,} random swaps within pairs). A lower perplexity at a lower entropy is no gain by itself."
    )
    return "\n".join(lines) + "\n"


def _joint_cells(joint: JointComparison | None) -> list[str]:
    """Difference and ratio of the joint divergences; dashes without a comparison."""
    if joint is None:
        return ["–", "–"]
    (low, high), (ratio_low, ratio_high) = joint.gap_ci, joint.ratio_ci
    ratio = f"{joint.ratio:.3f} [{ratio_low:.3f}, {ratio_high:.3f}]"
    return [f"{joint.gap:+.2f} [{low:+.2f}, {high:+.2f}]", "–" if math.isnan(joint.ratio) else ratio]


def _baseline(sample_set: SampleSet, sets: Sequence[SampleSet]) -> SampleSet:
    """The set that a sample set is compared with; the set itself if no other set has equal fields."""
    comparable = [other for other in sets if _pair_key(other.row) == _pair_key(sample_set.row)]
    return min(comparable, key=lambda other: (other.row.role, other.row.sampler) != ("teacher", "ancestral"))


def _pair_key(row: EvaluationRow) -> tuple[object, ...]:
    return tuple(getattr(row, name) for name in SHARED_BY_PAIRS)


def _kind(row: EvaluationRow) -> tuple[object, ...]:
    return tuple(getattr(row, name) for name in KIND)


def _nearest_difference(sets: Sequence[SampleSet], bases: Sequence[SampleSet]) -> str:
    """A clause with the fields in which the two most similar sets differ; empty without sampled sets."""
    pairs = [(sample_set.row, base.row) for sample_set in sets for base in bases if base.row.nfe]
    if not pairs:
        return ""
    differing = [[name for name in KIND if getattr(row, name) != getattr(base, name)] for row, base in pairs]
    closest = min(range(len(pairs)), key=lambda number: len(differing[number]))
    row, base = pairs[closest]
    values = (f"{name} is {getattr(row, name)!r} and {getattr(base, name)!r}" for name in differing[closest])
    return f" (of the two rows with the fewest differences, {', '.join(values)})"


def _log_ratio(totals: Float[Tensor, "r 4"]) -> Float[Tensor, " r"]:
    """Log of the perplexity ratio, from totals of NLL and tokens of the first and of the second set."""
    return totals[:, 0] / totals[:, 1] - totals[:, 2] / totals[:, 3]


def _permutation_p_value(columns: Float[Tensor, "b 4"], seed: int) -> float:
    """Share of permutations, the identity included, whose absolute log-ratio is at least the observed one."""
    generator = torch.Generator().manual_seed(seed)
    swap = columns.roll(2, 1) - columns  # change of the totals when the two samples of a pair are exchanged
    observed = float(_log_ratio(columns.sum(0, keepdim=True)).abs())
    if not columns.isfinite().all():
        return math.nan
    num_extreme = 0
    for size in torch.arange(NUM_PERMUTATIONS).split(CHUNK):
        is_swapped = torch.rand(len(size), len(columns), generator=generator) < 0.5
        ratios = _log_ratio(columns.sum(0) + is_swapped.double() @ swap).abs()
        num_extreme += int((ratios >= observed * (1 - 1e-12)).sum())
    return (1 + num_extreme) / (1 + NUM_PERMUTATIONS)
