"""Objectives that several recipes share, with the discriminator and optimizers that fit them."""

from didi.methods.didi_settings import DiscriminatorSettings
from didi.methods.objective_settings import ObjectiveConfig
from didi.methods.settings import OptimizerConfig

# The paper's two moves with the exact variance reductions A and B. The divergence prevents a low entropy of many-step
# samples; its weight was chosen on ``markov`` (docs/lab-notes.md).
TWO_MOVES = ObjectiveConfig(
    completions=3,
    advantage="shared-state",
    revealed_only=True,
    divergence_weight=0.35,
    entropy_weight=0.0,
)


def whole_path(num_moves: int, *, reference_steps: int = 0) -> ObjectiveConfig:
    """Whole paths of ``num_moves`` moves with the reward of the finished sample, without regularisers."""
    return ObjectiveConfig(
        trajectory="whole-path",
        moves=num_moves,
        reference_steps=reference_steps,
        advantage="leave-one-out",
        divergence_weight=0.0,
        entropy_weight=0.0,
    )


def paths_discriminator(
    *, warmup_steps: int, steps_per_student_step: int, guidance_steps: int
) -> DiscriminatorSettings:
    """The discriminator for whole paths: one logit per sequence, no label smoothing, new samples for each update."""
    return DiscriminatorSettings(
        output="sequence",
        label_smoothing=0.0,
        warmup_steps=warmup_steps,
        steps_per_student_step=steps_per_student_step,
        fresh_rollouts=True,
        guidance_steps=guidance_steps,
    )


def paths_optimizer(learning_rate: float) -> OptimizerConfig:
    """AdamW for student and discriminator; beta2 is low, since the loss of each network changes with the other."""
    return OptimizerConfig(learning_rate=learning_rate, beta2=0.99, weight_decay=0.0)
