"""Measures by which the students of a comparison of methods are judged, at each scale."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from didi.apps.reproduce.cells import name_of
from didi.apps.reproduce.exact_tables import difference, level
from didi.apps.reproduce.methods import MethodPlan
from didi.apps.reproduce.study import Study
from didi.apps.reproduce.tables import ratio_cell
from didi.evaluation.frontier import perplexity_at_entropy
from didi.evaluation.row import EvaluationRow


@dataclass(frozen=True)
class Measure:
    """A metric of a row.

    Attributes:
        name: short name, for the corner of a table and the axis of a figure.
        about: a sentence that describes the measure.
        of: function from a row to its figure; NaN if the row has none.
        is_ratio: whether seeds are averaged, and methods compared, by the logarithm of the figure.
    """

    name: str
    about: str
    of: Callable[[EvaluationRow], float]
    is_ratio: bool = False

    def level(self, values: Sequence[float]) -> str:
        """Mean [95% interval] of the figure over seeds."""
        if any(map(math.isnan, values)):
            return "–"
        return ratio_cell(values, has_verdict=False) if self.is_ratio else level(values)

    def change(self, values: Sequence[float], base: Sequence[float]) -> str:
        """Difference or ratio to the figures of ``base``, seed by seed, with a verdict."""
        if any(map(math.isnan, [*values, *base])):
            return "–"
        if self.is_ratio:
            return ratio_cell([value / other for value, other in zip(values, base, strict=True)])
        return difference(values, base)


KL = Measure(
    "KL, nats",
    "KL(p, q), with p the distribution of the sampler and q that of the data, is a sum over all sequences, in nats per "
    "sequence, without sampling error unless a note says otherwise.",
    lambda row: row.kl,
)
JOINT = Measure(
    "joint KL, nats",
    "Joint KL(samples, chain) is the divergence of whole sequences, in nats per sequence. It is estimated by a network "
    "that is fitted to the samples, and is a lower bound in expectation (docs/evaluation.md).",
    lambda row: row.joint_kl,
)
PAIRS = Measure(
    "KL of pairs, nats",
    "KL of pairs is KL(samples, chain) of adjacent symbols, in nats per pair.",
    lambda row: row.pair_kl,
)


def measures(plan: MethodPlan, study: Study) -> list[Measure]:
    """The measures of a scale; methods are compared by the first measure."""
    if plan.frontier:
        return [_over_frontier(plan, study)]
    return [JOINT, PAIRS] if plan.settings.joint else [KL]


def _over_frontier(plan: MethodPlan, study: Study) -> Measure:
    sweep = [(row.entropy, row.gen_ppl) for row in map(study.row, plan.frontier)]
    cells = plan.frontier
    return Measure(
        "perplexity over the teacher's",
        f"Perplexity over the teacher's: perplexity divided by that of the teacher `{name_of(cells[0].bundle)}` at "
        f"{cells[0].nfe} moves and the entropy of the row, interpolated between its samples at temperatures "
        f"{cells[0].temperature:g} to {cells[-1].temperature:g}. A lower temperature alone does not lower this ratio. "
        "–: the entropy of a seed is outside the range of these samples. Intervals do not include their sampling "
        "error.",
        lambda row: row.gen_ppl / perplexity_at_entropy(sweep, row.entropy),
        is_ratio=True,
    )


Rows = Mapping[str, Mapping[int, Sequence[EvaluationRow]]]
"""Rows of each seed, by the name of the curve and the number of moves."""


def rows_of(plan: MethodPlan, study: Study) -> Rows:
    """Evaluation rows of all curves."""
    return {curve.name: {nfe: [study.row(cell) for cell in curve.cells(nfe)] for nfe in curve.nfes}
            for curve in plan.curves}  # fmt: skip
