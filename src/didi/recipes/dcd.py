"""Discrete consistency distillation (Sahoo et al. 2025, https://arxiv.org/abs/2506.10892) of uniform-state teachers."""

from didi.methods.dcd import DcdConfig
from didi.methods.settings import DataConfig, LoopConfig, OptimizerConfig


def dcd(
    recipe: str, teacher: str, data: DataConfig, *, num_moves: int, learning_rate: float, steps: int, batch_size: int
) -> DcdConfig:
    """A short run of four rounds, whose last round has ``num_moves`` intervals.

    A step costs four sequence passes for each sequence: one of the target network, and three of the student, whose
    backward pass counts as two. The learning rate falls linearly; in the public code it is constant.
    """
    return DcdConfig(
        recipe=recipe,
        teacher=teacher,
        data=data,
        rounds=4,
        num_intervals=8 * num_moves,
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=100, weight_decay=0.0),
        loop=LoopConfig(
            steps=steps,
            batch_size=batch_size,
            validate_every=max(1, steps // 4),
            checkpoint_every=max(1, steps // 8),
            ema_decay=0.99,
        ),
    )
