"""Presets for any DiDi-Instruct recipe, with two moves: the defaults here, the paper's text, and the released code."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from didi.arguments import one_of
from didi.methods.didi_settings import DistillConfig, ObjectiveConfig
from didi.recipes.objectives import TWO_MOVES

# Settings of all presets: one logit per token, one discriminator update per step.
_SHARED: dict[str, Any] = {"output": "token", "steps_per_student_step": 1, "fresh_rollouts": False}


def _two_moves(config: DistillConfig) -> DistillConfig:
    """The paper's two moves with our exact reductions of variance: the base of ``recipes.ablations``."""
    return replace(
        config,
        objective=TWO_MOVES,
        discriminator=replace(
            config.discriminator, real_source="corpus", label_smoothing=0.1, guidance_steps=0, **_SHARED
        ),
    )


def _paper(config: DistillConfig) -> DistillConfig:
    """The paper's text; docs/deviations.md lists its contradictions."""
    return replace(
        config,
        objective=ObjectiveConfig(
            weight="nelbo", importance_weighting=True, advantage="batch", divergence_weight=0.05, entropy_weight=0.0005
        ),
        discriminator=replace(
            config.discriminator, real_source="teacher-pool", label_smoothing=0.0, guidance_steps=0, **_SHARED
        ),
    )


def _released(config: DistillConfig) -> DistillConfig:
    """The training settings of the authors' released code, without its errors (rows 6, 7 and 22).

    Its sampler is ``Guidance.released()``.
    """
    return replace(
        config,
        objective=ObjectiveConfig(
            weight="nelbo", reward_clamp=8.0, advantage="rows", group_size=4, advantage_clamp=3.0,  # rows 10 to 12
            divergence_weight=0.05 * 0.01,  # row 15
        ),
        discriminator=replace(
            config.discriminator,
            real_source="corpus", label_smoothing=0.2, guidance_steps=0, **_SHARED,  # row 8: labels 0.9 and 0.1
        ),
        loop=replace(config.loop, ema_decay=0.999, ema_ramp=False),  # row 17
    )  # fmt: skip


PRESETS: dict[str, Callable[[DistillConfig], DistillConfig]] = {
    "paper": _paper,
    "released": _released,
    "two-moves": _two_moves,
}


def preset(config: DistillConfig, name: str) -> DistillConfig:
    """``config`` with the settings of a preset.

    Raises:
        UsageError: no preset has that name.
    """
    return PRESETS[one_of("a preset", name, list(PRESETS))](config)
