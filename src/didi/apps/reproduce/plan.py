"""The plan of ``didi reproduce`` at one scale: networks, seeds and numbers of moves."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from didi.apps.reproduce.cells import Cell, Run
from didi.apps.reproduce.study import Study
from didi.data.markov import EXACT, MARKOV
from didi.evaluation.anchors import ANCHORS
from didi.evaluation.machine import machine_name
from didi.methods.didi_settings import DistillConfig
from didi.recipes.ablations import objective_without_tricks

# Temperatures of the teacher's sweep, wide enough to cover the entropies of its students.
TEMPERATURES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5)


@dataclass(frozen=True)
class Plan:
    """The networks, seeds and numbers of moves of a scale.

    Attributes:
        scale: name of the scale.
        teacher: bundle of the teacher.
        recipe: settings of our distillation, shortened for the scale; the ablations change the paper's objective in it.
        nfes: numbers of moves.
        more_teacher_nfes: further numbers of moves of the teacher, large enough to reach the quality of its student.
        seeds: training seeds of each row of a table.
        corpora: corpora of Table 7.
        baseline: bundle or run of the autoregressive baseline, if there is one.
        larger: bundle or run of a larger teacher, if there is one.
        distilled: bundle with a student of the full recipe, if there is one.
        peers: other teachers on the same tokens, by name.
    """

    scale: str
    teacher: str
    recipe: DistillConfig
    nfes: tuple[int, ...]
    more_teacher_nfes: tuple[int, ...]
    seeds: tuple[int, ...]
    corpora: tuple[str, ...]
    baseline: Run | str | None = None
    larger: Run | str | None = None
    distilled: str | None = None
    peers: Mapping[str, Run | str] = field(default_factory=dict)

    @property
    def is_exact(self) -> bool:
        """Whether rows have an exact divergence, by which they are then compared."""
        return self.scale == EXACT

    @property
    def ablated(self) -> DistillConfig:
        """The recipe with the objective of the ablation tables, which switch parts of the paper's objective on and off.

        Below the paper's scale it has our exact variance reductions, since short runs are noisy.
        """
        recipe_objective, objective = self.recipe.objective, objective_without_tricks()
        if self.scale != "paper":
            reductions = ("completions", "advantage", "revealed_only")
            objective = replace(objective, **{name: getattr(recipe_objective, name) for name in reductions})
        return replace(self.recipe, objective=objective)

    def runs(self, config: DistillConfig) -> list[Run]:
        """A distillation of the teacher for each seed."""
        return [Run(replace(config, teacher=self.teacher, seed=seed)) for seed in self.seeds]

    @property
    def first_run(self) -> Run:
        """The distillation with our recipe and the first seed."""
        return self.runs(self.recipe)[0]

    @property
    def student(self) -> Run | str:
        """Bundle or run of the student of Figures 1 and 3 and Table 7."""
        return self.distilled or self.first_run

    @property
    def middle_nfe(self) -> int:
        """The number of moves at which rows are compared with the teacher at equal entropy."""
        return self.nfes[len(self.nfes) // 2]

    @property
    def teacher_sweep(self) -> list[Cell]:
        """Cells of the teacher with ``middle_nfe`` moves at each temperature."""
        return [Cell(self.teacher, "teacher", nfe=self.middle_nfe, temperature=value) for value in TEMPERATURES]

    @property
    def teacher_cells(self) -> list[Cell]:
        """Cells that all figures show: data, anchors, and the teacher at each number of moves."""
        real = [Cell(self.teacher, role, nfe=0) for role in ("data", *ANCHORS)]
        return real + [Cell(self.teacher, "teacher", nfe=nfe) for nfe in (*self.nfes, *self.more_teacher_nfes)]


def heading(plan: Plan, study: Study) -> list[str]:
    """Lines at the head of the report: settings that all tables and figures share."""
    recipe, sampling = plan.recipe, study.sampling
    seen = recipe.discriminator.completions or recipe.objective.completions
    reduced = (
        ""
        if plan.scale == "paper"
        else " with the variance reductions A and B (docs/deviations.md), which do not change its expected gradient,"
    )
    lines = [
        f"Teacher `{plan.teacher}`. Each student: {recipe.discriminator.warmup_steps} steps of the discriminator "
        f"alone, then {recipe.loop.steps} student steps. A step has {recipe.loop.batch_size} states z_τ with "
        f"{recipe.objective.completions} completions each; the discriminator is trained on {seen} of them. "
        f"Training seeds {', '.join(map(str, plan.seeds))}. "
        f"{sampling.num_samples} samples for each entry, seed {sampling.seed}, "
        f"judge `{sampling.judge}`, draws in float64, uniform time grid; {machine_name()}. Tables 1 and 2 use the "
        f"paper's objective{reduced} and switch its parts on or off; networks and optimizers are those of our recipe. "
        "Perplexities are geometric means over training seeds [95% t-interval of the logarithm]; entropies are "
        "unigram entropies within a sample, in nats.",
    ]
    if plan.distilled:
        lines.append(
            f"Figures 1 and 3 and Table 7 show the student that the bundle `{plan.distilled}` had at the time of this "
            "run."
        )
    if plan.is_exact:
        lines.append(
            "KL(p, q), with p the distribution of the sampler and q that of the data, is a sum over all sequences, in "
            "nats per sequence, without sampling error; intervals are over training seeds. Guided sampling draws one "
            "of 4 candidates from a softmax of their rewards: with the best of 4 the distribution cannot be summed."
        )
    if plan.scale == MARKOV:
        lines.append("The judge is the exact likelihood of the chain, so perplexities have no error of a judge.")
    return lines
