"""Two sample sets drawn with the same seeds, compared pair by pair: the noise that they share drops out."""

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
"""Fields of a row that are equal in two sets whose samples are compared pair by pair."""
KIND = ("role", "sampler", "settings", "precision", *SHARED_BY_PAIRS)
"""Fields of a row that are equal in two sets of different models that are compared."""


@dataclass(frozen=True)
class Comparison:
    """One sample set against another of the same seeds.

    Attributes:
        perplexity_ratio: corpus perplexity of the first over that of the second.
        perplexity_ratio_ci: its 95% interval, pairs resampled together.
        p_value: of no difference in perplexity, from swapping random pairs; two-sided, in (0, 1]; NaN where
            a text has no probability.
        entropy_gap: mean entropy of the first less that of the second, nats.
        entropy_gap_ci: its 95% interval.
        joint: their joint divergences, if both have one from the same reference.
    """

    perplexity_ratio: float
    perplexity_ratio_ci: Interval
    p_value: float
    entropy_gap: float
    entropy_gap_ci: Interval
    joint: JointComparison | None = None


def compare_pairs(ours: SampleSet, theirs: SampleSet, *, seed: int = 0) -> Comparison:
    """Compare two sample sets whose i-th samples were drawn with the same noise.

    Args:
        ours: the first set.
        theirs: the second, as large.
        seed: of the resampling and the permutations.

    Raises:
        ValueError: the sets differ in size.
    """
    if len(ours.entropies) != len(theirs.entropies):
        raise ValueError(f"pairs need sets of one size; got {len(ours.entropies)} and {len(theirs.entropies)}")
    columns = torch.stack(
        [ours.scores.nll, ours.scores.num_tokens.double(), theirs.scores.nll, theirs.scores.num_tokens.double()], 1
    )
    gap = ours.entropies - theirs.entropies
    joint, is_alike = None, ours.row.joint_reference == theirs.row.joint_reference
    if is_alike and ours.log_ratios is not None and theirs.log_ratios is not None:
        joint = compare_joint(ours.log_ratios, theirs.log_ratios, seed=seed)
    return Comparison(
        perplexity_ratio=perplexity(ours.scores) / perplexity(theirs.scores),
        perplexity_ratio_ci=bootstrap_interval(columns, lambda totals: _log_ratio(totals).exp(), seed=seed),
        p_value=_permutation_p_value(columns, seed),
        entropy_gap=float(gap.mean()),
        entropy_gap_ci=mean_interval(gap, seed=seed),
        joint=joint,
    )


def comparison_table(sets: Sequence[SampleSet]) -> str | None:
    """Each sample set against one of the same judge, moves, temperature and top-p, as a Markdown table.

    The other is the teacher's ancestral one where there is one, else the first.

    Returns:
        None where no two sets can be compared.
    """
    details = varying_fields([one.row for one in sets if one.row.nfe], DETAILS)
    comparisons = [
        (one.row.label(also=details), base.row.label(also=details), compare_pairs(one, base))
        for one in sets
        if one.row.nfe and (base := _baseline(one, sets)) is not one
    ]
    return _table(comparisons) if comparisons else None


def models_table(models: Mapping[str, Sequence[SampleSet]]) -> str:
    """Each model against the first one, set by set where all that pairs share is equal, as a Markdown table.

    An autoregressive network shares its noise with no diffusion network: where two models have no more in common, they
    are left to the comparison at equal entropy.

    Args:
        models: the sample sets of two models or more, by name.

    Raises:
        UsageError: a later model has no set that can be compared with one of the first.
    """
    (first, bases), *others = models.items()
    details = varying_fields([one.row for sets in models.values() for one in sets if one.row.nfe], DETAILS)
    comparisons, alone = [], []
    for name, sets in others:
        drawn = [one for one in sets if one.row.nfe]
        found = [(one, [base for base in bases if _kind(base.row) == _kind(one.row)]) for one in drawn]
        has_baseline = len({any(is_autoregressive(one.row) for one in each) for each in (drawn, bases)}) > 1
        if not any(alike for _, alike in found) and not has_baseline:
            raise UsageError(
                f"models are compared where role, sampler and its settings, moves, judge, seed and number of samples "
                f"are equal; {name} has no set like one of {first}{_nearest_difference(drawn, bases)}: measure both "
                "with the same flags"
            )
        for one, alike in found:
            label = f"{name}: {one.row.label(also=details)}"
            comparisons += [(label, first, compare_pairs(one, base)) for base in alike]
            alone += [] if alike else [label]
    table = f"{_table(comparisons)}\n" if comparisons else ""
    return f"{table}Not in {first}: {'; '.join(alone)}.\n" if alone else table.removesuffix("\n")


def _table(comparisons: Sequence[tuple[str, str, Comparison]]) -> str:
    header = ["", "against", "perplexity ratio [95% CI]", "p", "entropy gap [95% CI]"]
    has_joint = any(found.joint is not None for _, _, found in comparisons)
    header += ["joint KL gap [95% CI]", "joint KL ratio [95% CI]"] if has_joint else []
    rows = []
    for ours, theirs, found in comparisons:
        (low, high), (gap_low, gap_high) = found.perplexity_ratio_ci, found.entropy_gap_ci
        ratio = f"{found.perplexity_ratio:.3f} [{low:.3f}, {high:.3f}]"
        gap = f"{found.entropy_gap:+.3f} [{gap_low:+.3f}, {gap_high:+.3f}]"
        rows.append([ours, theirs, ratio, f"{found.p_value:.4f}", gap, *(_joint_cells(found) if has_joint else [])])
    lines = markdown_table(header, rows, num_left=2)
    lines.append(
        "\nSamples of the same seed are compared pair by pair: p is that of no difference in perplexity "
        f"({NUM_PERMUTATIONS:,} random swaps of pairs). A lower perplexity at a lower entropy is no gain by itself."
    )
    return "\n".join(lines) + "\n"


def _joint_cells(found: Comparison) -> list[str]:
    """Difference and ratio of the joint divergences; dashes where there are none."""
    if found.joint is None:
        return ["–", "–"]
    (low, high), (ratio_low, ratio_high) = found.joint.gap_ci, found.joint.ratio_ci
    ratio = f"{found.joint.ratio:.3f} [{ratio_low:.3f}, {ratio_high:.3f}]"
    return [f"{found.joint.gap:+.2f} [{low:+.2f}, {high:+.2f}]", "–" if math.isnan(found.joint.ratio) else ratio]


def _baseline(one: SampleSet, sets: Sequence[SampleSet]) -> SampleSet:
    """What a sample set is compared with; itself where there is nothing else."""
    alike = [other for other in sets if _what_pairs_share(other.row) == _what_pairs_share(one.row)]
    return min(alike, key=lambda other: (other.row.role, other.row.sampler) != ("teacher", "ancestral"))


def _what_pairs_share(row: EvaluationRow) -> tuple[object, ...]:
    return tuple(getattr(row, name) for name in SHARED_BY_PAIRS)


def _kind(row: EvaluationRow) -> tuple[object, ...]:
    return tuple(getattr(row, name) for name in KIND)


def _nearest_difference(sets: Sequence[SampleSet], bases: Sequence[SampleSet]) -> str:
    """The fields in which the two most alike sets differ, as a clause with both values; empty without sampled sets."""
    pairs = [(one.row, base.row) for one in sets for base in bases if base.row.nfe]
    found = [[name for name in KIND if getattr(one, name) != getattr(base, name)] for one, base in pairs]
    if not found:
        return ""
    number = min(range(len(found)), key=lambda number: len(found[number]))
    one, base = pairs[number]
    values = (f"{name} is {getattr(one, name)!r} and {getattr(base, name)!r}" for name in found[number])
    return f" (of the most alike ones, {', '.join(values)})"


def _log_ratio(totals: Float[Tensor, "r 4"]) -> Float[Tensor, " r"]:
    """Log of the perplexity ratio from totals of NLL and tokens of either set."""
    return totals[:, 0] / totals[:, 1] - totals[:, 2] / totals[:, 3]


def _permutation_p_value(columns: Float[Tensor, "b 4"], seed: int) -> float:
    """Share of random swaps within pairs that differ at least as much as the sets do, the sets themselves counted."""
    generator = torch.Generator().manual_seed(seed)
    swap = columns.roll(2, 1) - columns  # what exchanging a pair adds to the totals
    observed = float(_log_ratio(columns.sum(0, keepdim=True)).abs())
    if not columns.isfinite().all():
        return math.nan
    num_extreme = 0
    for size in torch.arange(NUM_PERMUTATIONS).split(CHUNK):
        is_swapped = torch.rand(len(size), len(columns), generator=generator) < 0.5
        ratios = _log_ratio(columns.sum(0) + is_swapped.double() @ swap).abs()
        num_extreme += int((ratios >= observed * (1 - 1e-12)).sum())
    return (1 + num_extreme) / (1 + NUM_PERMUTATIONS)
