"""The paper's ablations (Tables 1-2, App. F.3) and our decisions, as changes to one distillation recipe.

Each row of a table is a complete configuration; equal configurations in several tables need one run only.
"""

from dataclasses import replace
from typing import Any

from didi.methods.didi_settings import DistillConfig, ObjectiveConfig

# Objective settings of each trick, in the order of Table 1; guided inference is a setting of sampling, not of training.
TRICKS: dict[str, dict[str, Any]] = {
    "Score Decompose": {"trajectory": "two-moves"},
    "Coupled Time t": {"coupled_time": True},
    "ω(t) Correction": {"weight": "nelbo"},
    "π(t) Weighting": {"time_a": 2.0, "time_b": 5.0},  # F.3: few masks, for few passes
    "Regularization": {"divergence_weight": 0.05, "entropy_weight": 0.0005},
}
NO_TRICKS: dict[str, Any] = {
    "trajectory": "one-step",
    "moves": None,
    "coupled_time": False,
    "weight": "constant",
    "time_a": 1.0,
    "time_b": 1.0,
    "divergence_weight": 0.0,
    "entropy_weight": 0.0,
}
GUIDED = "Guided Inference"


def cumulative(base: DistillConfig) -> dict[str, DistillConfig]:
    """Trained rows of Table 1: no tricks, then one more trick in each row."""
    objective = dict(NO_TRICKS)
    rows = {"Baseline (no tricks)": with_objective(base, **objective)}
    for name, trick in TRICKS.items():
        objective |= trick
        rows[f"+ {name}"] = with_objective(base, **objective)
    return rows


def leave_one_out(base: DistillConfig) -> dict[str, DistillConfig]:
    """Trained rows of Table 2: all tricks but one, then all tricks."""
    rows = {}
    for left_out, trick in TRICKS.items():
        kept = {key: value for name, settings in TRICKS.items() if name != left_out for key, value in settings.items()}
        rows[f"w/o {left_out}"] = with_objective(base, **{key: NO_TRICKS[key] for key in trick}, **kept)
    rows["Baseline (with all tricks)"] = list(cumulative(base).values())[-1]
    return rows


def decisions(base: DistillConfig) -> dict[str, DistillConfig]:
    """The alternatives in docs/deviations.md, each as one change to the recipe ``base`` with two moves."""
    name = "our recipe" if base.objective.trajectory == "two-moves" else "our recipe, of two moves"
    # Several alternatives change settings that exist with the paper's two moves only.
    base = with_objective(base, trajectory="two-moves", moves=None)
    smooth = replace(base.discriminator, unsmooth=True)
    pool = replace(base.discriminator, real_source="teacher-pool")
    return {
        name: base,
        "advantage over the batch": with_objective(base, advantage="batch"),
        "score of every token (no reduction A)": with_objective(base, revealed_only=False),
        "one completion a state (no reduction B)": replace(
            with_objective(base, completions=1, advantage="batch"),
            discriminator=replace(base.discriminator, completions=None),
        ),
        "times that are not coupled": with_objective(base, coupled_time=False),
        "divide by π(t), Beta(2, 5) times": with_objective(base, time_a=2.0, time_b=5.0, importance_weighting=True),
        "Beta(2, 5) times": with_objective(base, time_a=2.0, time_b=5.0),
        "ω(t) of the NELBO": with_objective(base, weight="nelbo"),
        "ω(t) of the NELBO, not clamped": with_objective(base, weight="nelbo", weight_low=0.0, weight_high=1e6),
        "teacher samples as the real side": replace(base, discriminator=pool),
        "log-ratio without the smoothing": replace(base, discriminator=smooth),
        "mean of a token's score": with_objective(base, pg_reduction="token-mean"),
    }


def with_objective(config: DistillConfig, **changes: Any) -> DistillConfig:
    """``config`` with some fields of its objective changed."""
    return replace(config, objective=replace(config.objective, **changes))


def objective_without_tricks() -> ObjectiveConfig:
    """The objective that the tables start from: advantages over the batch, one completion, every token scored."""
    return ObjectiveConfig(advantage="batch", **NO_TRICKS)
