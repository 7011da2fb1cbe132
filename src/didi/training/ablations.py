"""The paper's ablations (Tables 1-2, App. F.3) and our own decisions, as changes to one distillation recipe.

Each row of a table is a whole configuration; equal ones are one run, however many tables show them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from didi.training.config import DistillConfig, ObjectiveConfig

# What each trick switches on, in the order in which Table 1 adds them; guided inference belongs to sampling.
TRICKS: dict[str, dict[str, Any]] = {
    "Score Decompose": {"score_decomposition": True},
    "Coupled Time t": {"coupled_time": True},
    "ω(t) Correction": {"weight": "nelbo"},
    "π(t) Weighting": {"time_a": 2.0, "time_b": 5.0},  # F.3: towards few masks, for few passes
    "Regularization": {"divergence_weight": 0.05, "entropy_weight": 0.0005},
}
NO_TRICKS: dict[str, Any] = {
    "score_decomposition": False,
    "coupled_time": False,
    "weight": "constant",
    "time_a": 1.0,
    "time_b": 1.0,
    "divergence_weight": 0.0,
    "entropy_weight": 0.0,
}
GUIDED = "Guided Inference"


def cumulative(base: DistillConfig) -> dict[str, DistillConfig]:
    """Rows of Table 1 that are trained: no tricks, then one more in each row."""
    switched = dict(NO_TRICKS)
    rows = {"Baseline (no tricks)": with_objective(base, **switched)}
    for name, trick in TRICKS.items():
        switched |= trick
        rows[f"+ {name}"] = with_objective(base, **switched)
    return rows


def leave_one_out(base: DistillConfig) -> dict[str, DistillConfig]:
    """Rows of Table 2 that are trained: every trick but one, then all."""
    rows = {}
    for left_out, trick in TRICKS.items():
        kept = {key: value for name, one in TRICKS.items() if name != left_out for key, value in one.items()}
        rows[f"w/o {left_out}"] = with_objective(base, **{name: NO_TRICKS[name] for name in trick}, **kept)
    rows["Baseline (with all tricks)"] = list(cumulative(base).values())[-1]
    return rows


def decisions(base: DistillConfig) -> dict[str, DistillConfig]:
    """What docs/deviations.md decides, each alternative as one change to our own recipe ``base``, of two moves."""
    base = with_objective(base, moves=2)  # the paper's generator, whose times the alternatives are about
    smooth = replace(base.discriminator, unsmooth=True)
    pool = replace(base.discriminator, real_source="teacher-pool")
    return {
        "our recipe": base,
        "advantage over the batch": with_objective(base, advantage="batch"),
        "score of every token (no reduction A)": with_objective(base, revealed_only=False),
        "one completion a state (no reduction B)": replace(
            with_objective(base, completions=1, advantage="batch"),
            discriminator=replace(base.discriminator, completions=None),
        ),
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


def paper_objective() -> ObjectiveConfig:
    """The objective that the tables switch tricks of: grouped over the batch, one completion, every token scored."""
    return ObjectiveConfig(advantage="batch", **NO_TRICKS)


# Perplexity and entropy at 8, 16, 32, 64 and 128 NFE as published (OpenWebText, L = 1024, judge GPT-2 Large).
PAPER_NFES = (8, 16, 32, 64, 128)
PAPER_TABLE_1: Mapping[str, tuple[tuple[float, float], ...]] = {
    "Baseline (no tricks)": ((803.922, 5.85), (311.450, 5.76), (174.789, 5.70), (113.112, 5.61), (96.649, 5.59)),
    "+ Score Decompose": ((667.830, 5.83), (289.720, 5.76), (165.809, 5.70), (105.880, 5.61), (89.350, 5.59)),
    "+ Coupled Time t": ((101.019, 5.16), (75.188, 5.46), (48.441, 5.35), (35.833, 5.37), (30.574, 5.33)),
    "+ ω(t) Correction": ((94.955, 5.21), (75.607, 5.22), (31.651, 5.20), (25.271, 5.16), (20.980, 5.12)),
    "+ π(t) Weighting": ((92.100, 5.15), (43.997, 5.17), (32.276, 5.21), (26.079, 5.21), (21.377, 5.13)),
    "+ Regularization": ((88.274, 5.11), (43.980, 5.16), (28.444, 5.12), (21.946, 5.06), (18.325, 5.00)),
    "+ Guided Inference": ((62.236, 5.17), (38.188, 5.21), (24.971, 5.18), (21.905, 5.15), (18.446, 5.15)),
}
PAPER_TABLE_2: Mapping[str, tuple[tuple[float, float], ...]] = {
    "w/o Score Decompose": ((33584.0, 6.77), (28962.0, 6.77), (23134.0, 6.75), (14634.0, 6.64), (7983.0, 6.51)),
    "w/o Coupled Time t": ((360.75, 5.42), (159.43, 5.43), (94.859, 5.45), (64.639, 5.35), (51.121, 5.39)),
    "w/o ω(t) Correction": ((82.489, 5.12), (41.034, 5.13), (30.313, 5.09), (25.125, 5.04), (18.806, 5.02)),
    "w/o π(t) Weighting": ((69.656, 5.22), (40.499, 5.17), (25.799, 5.15), (21.503, 5.16), (19.616, 5.14)),
    "w/o Regularization": ((84.594, 5.20), (30.994, 5.22), (23.603, 5.20), (19.609, 5.18), (17.499, 5.17)),
    "w/o Guided Inference": ((88.274, 5.11), (43.980, 5.16), (28.444, 5.12), (21.946, 5.06), (18.325, 5.00)),
    "Baseline (with all tricks)": ((62.236, 5.17), (38.188, 5.21), (24.971, 5.18), (21.905, 5.15), (18.446, 5.15)),
}
