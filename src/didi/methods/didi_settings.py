"""Settings of DiDi-Instruct; "Table" and "App." refer to the paper, "row" to ``docs/deviations.md``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from didi.errors import UsageError
from didi.methods.objective_settings import ObjectiveConfig, upgraded_objective
from didi.methods.settings import (
    DistillationConfig,
    OptimizerConfig,
    RunConfig,
    check_at_least,
    check_finite,
    check_fraction,
    check_sharding,
)

__all__ = ["DiscriminatorSettings", "DistillConfig", "ObjectiveConfig"]


@dataclass(frozen=True)
class DiscriminatorSettings:
    """The discriminator and its training (Table 3, row 8)."""

    output: Literal["token", "sequence"] = "token"
    """One logit for each token (text), or one for a sequence (proteins, App. F.6)."""
    trainable_blocks: int | None = None
    """Number of last blocks that are trained beside the head; other blocks keep the teacher's weights. None trains all
    blocks; 4 in the released code."""
    is_time_conditioned: bool = True
    """Whether the discriminator reads the noise level (row 9 of docs/deviations.md)."""
    label_smoothing: float = 0.1
    """Smoothing epsilon of the labels 1 - eps/2 and eps/2; 0.2 for the labels 0.9 and 0.1 of the released code (row
    8)."""
    unsmooth: bool = False
    """Correct log-ratios for the label smoothing (row 8 of docs/deviations.md)."""
    warmup_steps: int = 300
    """Steps before the first student update, in which only the discriminator is trained."""
    warmup_moves: int = 2
    """Moves of the student in the warm-up. 2: two moves even if the objective's trajectory is a path, since the
    discriminator learns faster from two moves; 3 or more: a path of that many moves."""
    steps_per_student_step: int = 1
    """Discriminator updates for each student update, each on new corruptions and new real rows."""
    completions: int | None = None
    """Completions of each state that the discriminator learns from, None for all; completions of one state are similar,
    so that 1 loses little."""
    fresh_rollouts: bool = False
    """Whether the second and further discriminator updates of a step have new samples of the student; otherwise they
    have new corruptions of the same samples."""
    real_source: str = "corpus"
    """Real samples: ``corpus``; ``teacher-pool``, teacher samples drawn once and reused; or ``teacher-steps=K``,
    teacher samples drawn at every step with K passes (row 1 of docs/deviations.md)."""
    pool_size: int = 4096
    """Sequences in a teacher pool."""
    pool_nfe: int = 128
    """Passes per sequence of a teacher pool."""
    guidance_steps: int = 0
    """Steps after the last student update, in which only the discriminator is trained, on states of the finished
    student's ancestral sampler, which are the states that guided sampling scores."""
    guidance_nfe: int = 8
    """Moves of that sampler; with ``objective.budgets``, each step draws one of the budgets instead."""

    def __post_init__(self) -> None:
        if self.fresh_rollouts and self.steps_per_student_step == 1:
            raise UsageError(
                "discriminator.fresh_rollouts needs discriminator.steps_per_student_step of 2 or more; got 1: raise "
                "it, or turn fresh_rollouts off (--discriminator.no-fresh-rollouts)"
            )
        check_at_least(0, self, "warmup_steps", "guidance_steps")
        check_at_least(2, self, "warmup_moves")
        check_at_least(1, self, "steps_per_student_step", "pool_size", "pool_nfe", "guidance_nfe")
        check_fraction(self, "label_smoothing")
        check_finite(self)
        if not re.fullmatch("corpus|teacher-pool|teacher-steps=0*[1-9][0-9]*", self.real_source):
            raise UsageError(
                "discriminator.real_source is corpus, teacher-pool or teacher-steps=K with K >= 1; got "
                f"{self.real_source!r}"
            )
        if self.unsmooth and not self.label_smoothing:
            raise UsageError(
                "discriminator.unsmooth needs a positive discriminator.label_smoothing; got 0: raise label_smoothing, "
                "or turn unsmooth off"
            )


@dataclass(frozen=True)
class DistillConfig(DistillationConfig):
    """Distillation of a teacher into a few-step student by DiDi-Instruct, Algorithm 1.

    ``loop.batch_size`` counts intermediate states, ``loop.steps`` updates of the student. With ``loop.steps`` 0 only
    the discriminator is trained: warm-up, then guidance steps.
    """

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    discriminator: DiscriminatorSettings = field(default_factory=DiscriminatorSettings)
    student_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora_rank: int | None = None
    """Train student and discriminator as low-rank adapters of this rank on the teacher's weights, which are stored once
    (not in the paper); they learn less in the same steps (docs/scale.md). None trains full copies of the weights."""
    start: str = ""
    """Bundle with the initial student, and the initial discriminator if it has one (not in the paper). If it has no
    discriminator, the teacher initialises it; if ``start`` is empty, the teacher initialises both. The student may come
    from another method."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_groups()
        self._check_mixture()
        self._check_adapters()
        objective, discriminator, loop = self.objective, self.discriminator, self.loop
        check_sharding(loop, self.student_optimizer, self.discriminator_optimizer)
        if objective.budgets and loop.fsdp:
            raise UsageError("objective.budgets cannot be combined with loop.fsdp; got both: leave one out")
        if objective.reference_steps:
            if loop.fsdp:
                raise UsageError(
                    f"objective.reference_steps is 0 with loop.fsdp; got {objective.reference_steps}: set it to 0, or "
                    "turn loop.fsdp off"
                )
            if discriminator.steps_per_student_step > 1 and not discriminator.fresh_rollouts:
                raise UsageError(
                    "objective.reference_steps needs discriminator.fresh_rollouts where discriminator."
                    f"steps_per_student_step is 2 or more; got {discriminator.steps_per_student_step} without it: "
                    "turn it on"
                )
        if loop.accumulation > 1 and discriminator.steps_per_student_step > 1:
            raise UsageError(
                "discriminator.steps_per_student_step is 1 where loop.accumulation is more than 1: several "
                "discriminator updates cannot share accumulated batches; got "
                f"{discriminator.steps_per_student_step} and {loop.accumulation}"
            )
        if not 1 <= (discriminator.completions or 1) <= objective.completions:
            raise UsageError(
                f"discriminator.completions lies in [1, {objective.completions}], the objective's; got "
                f"{discriminator.completions}"
            )
        if objective.trajectory == "whole-path" and discriminator.warmup_moves != 2:
            raise UsageError(
                "discriminator.warmup_moves is 2 with objective.trajectory whole-path, whose warm-up has whole paths; "
                f"got {discriminator.warmup_moves}: leave it out"
            )
        is_plain = objective.trajectory != "one-step" and objective.coupled_time
        is_plain = is_plain and objective.time_a == objective.time_b == 1
        is_plain = is_plain and objective.advantage != "shared-time"  # each state has a time of its own
        has_path = "path" in (objective.trajectory, self.warmup_objective.trajectory)
        if has_path and not (is_plain and discriminator.steps_per_student_step == 1):
            raise UsageError(
                "objective.trajectory path and discriminator.warmup_moves above 2 need coupled_time, Beta(1, 1) times, "
                "an advantage other than shared-time, one update of the discriminator a step, and a trajectory other "
                f"than one-step; got {objective.trajectory} and {discriminator.warmup_moves}: set them to two-moves "
                "and 2, or the other settings to their defaults"
            )

    @property
    def starts_at_random(self) -> bool:
        """See ``DistillationConfig.starts_at_random``."""
        return self.objective.initial_state is not None

    @property
    def has_latent_codes(self) -> bool:
        """See ``DistillationConfig.has_latent_codes``."""
        return self.objective.latent_codes > 0

    def check_steps(self) -> None:
        """See ``RunConfig.check_steps``; a run may have guidance steps only."""
        if not self.loop.steps and not self.discriminator.guidance_steps:
            raise UsageError(
                "loop.steps is 1 or more, or 0 with discriminator.guidance_steps to train a discriminator for an "
                "unchanged student; got 0 for both: raise one of them"
            )

    def _check_mixture(self) -> None:
        """Refuse settings that random initial states and latent codes do not support."""
        if self.starts_at_random and self.discriminator.guidance_steps:
            raise UsageError(
                "discriminator.guidance_steps is 0 with objective.initial_mask_ratio below 1, since guided sampling "
                f"starts from all masks; got {self.discriminator.guidance_steps} and "
                f"{self.objective.initial_mask_ratio:g}: set one of them to 0 or 1"
            )
        num_codes, loop = self.objective.latent_codes, self.loop
        if num_codes and (loop.fsdp or self.lora_rank is not None):
            raise UsageError(
                f"objective.latent_codes cannot be combined with loop.fsdp or lora_rank; got {num_codes} with "
                f"{'loop.fsdp' if loop.fsdp else f'lora_rank {self.lora_rank}'}: leave one of the two out"
            )

    def _check_adapters(self) -> None:
        """Refuse settings that low-rank adapters do not support."""
        if self.lora_rank is None:
            return
        check_at_least(1, self, "lora_rank")
        if self.objective.budgets:
            raise UsageError(
                f"objective.budgets cannot be combined with lora_rank; got {self.lora_rank}: leave one out"
            )
        if self.start:
            raise UsageError(
                f"start cannot be combined with lora_rank; got {self.start} and {self.lora_rank}: leave one out"
            )
        methods = self.student_optimizer.method, self.discriminator_optimizer.method
        if self.loop.fsdp or "muon" in methods:
            raise UsageError(
                f"lora_rank needs AdamW without loop.fsdp; got {' and '.join(methods)}, loop.fsdp {self.loop.fsdp}: "
                "leave it out or change those"
            )

    def _check_groups(self) -> None:
        """Refuse batches whose advantages have no baseline; see ``objectives.didi.advantages``."""
        objective, num_states = self.objective, self.loop.batch_size
        kind, num_completions = objective.advantage, objective.completions
        if kind in ("rows", "shared-time"):
            if objective.group_size < 2:
                raise UsageError(
                    f"objective.group_size is 2 or more for objective.advantage {kind}; got {objective.group_size}: "
                    "raise it, or choose the advantage batch"
                )
            if num_states % objective.group_size:
                raise UsageError(
                    f"loop.batch_size is a multiple of objective.group_size for {kind} groups; got "
                    f"{num_states} and {objective.group_size}"
                )
        if kind == "batch" and num_states * num_completions < 2:
            raise UsageError(
                f"objective.advantage batch needs two samples or more; got loop.batch_size {num_states} and "
                f"objective.completions {num_completions}: raise one of them"
            )
        if kind == "shared-state" and min(num_states, num_completions) < 2:
            raise UsageError(
                "objective.advantage shared-state needs loop.batch_size and objective.completions of 2 or more; got "
                f"{num_states} and {num_completions}: raise them, or choose the advantage batch"
            )
        if kind == "leave-one-out" and (num_states < 2 or num_completions > 1):
            raise UsageError(
                "objective.advantage leave-one-out needs loop.batch_size of 2 or more and objective.completions 1; got "
                f"{num_states} and {num_completions}: change them, or choose the advantage batch"
            )

    @property
    def warmup_objective(self) -> ObjectiveConfig:
        """The objective of the discriminator's warm-up: trajectories have ``discriminator.warmup_moves`` moves.

        A whole path is the same in the warm-up.
        """
        if self.objective.trajectory == "whole-path":
            return self.objective
        if (moves := self.discriminator.warmup_moves) > 2:
            return replace(self.objective, trajectory="path", moves=moves)
        is_path = self.objective.trajectory == "path"
        return replace(self.objective, trajectory="two-moves", moves=None) if is_path else self.objective

    @property
    def scores_finished_samples(self) -> bool:
        """Whether all inputs of the discriminator are finished samples, at t = 0."""
        is_finished = self.objective.trajectory == "whole-path" and self.objective.reward_time == "finished"
        return is_finished and not self.discriminator.guidance_steps

    @classmethod
    def upgraded(cls, settings: Mapping[str, Any], base: RunConfig | None = None) -> dict[str, Any]:
        """See ``RunConfig.upgraded``."""
        upgraded = super().upgraded(settings, base)
        discriminator = upgraded.get("discriminator")
        if isinstance(discriminator, Mapping) and discriminator.get("steps_per_student_step") == 1:
            # Without it, ``base`` could turn on fresh rollouts, which one update a step does not support.
            upgraded["discriminator"] = {"fresh_rollouts": False, **discriminator}
        if isinstance(objective := upgraded.get("objective"), Mapping):
            default = base.objective if isinstance(base, DistillConfig) else ObjectiveConfig()
            upgraded["objective"] = upgraded_objective(objective, default)
        return upgraded

    @property
    def num_steps(self) -> int:
        """Warm-up steps, updates of the student and guidance steps."""
        return self.discriminator.warmup_steps + self.loop.steps + self.discriminator.guidance_steps

    def for_dry_run(self) -> "DistillConfig":
        """See ``RunConfig.for_dry_run``.

        A pool of teacher samples has the size of one batch, divided among the processes; all steps have the largest
        budget.
        """
        discriminator = replace(self.discriminator, pool_size=self.loop.batch_size, pool_nfe=1)
        objective = self.objective
        if objective.budgets:
            objective = replace(objective, moves=max(objective.budgets), budgets=(), budget_conditioning=True)
        return replace(self, start="", discriminator=discriminator, objective=objective)

    def limited(self, max_steps: int) -> "DistillConfig":
        """See ``RunConfig.limited``; warm-up and guidance steps are limited to ``max_steps`` each, 0 steps remain 0."""
        discriminator = replace(
            self.discriminator,
            warmup_steps=min(self.discriminator.warmup_steps, max_steps),
            guidance_steps=min(self.discriminator.guidance_steps, max_steps),
        )
        steps = max_steps if self.loop.steps else 0
        return replace(self, loop=replace(self.loop, steps=steps), discriminator=discriminator)
