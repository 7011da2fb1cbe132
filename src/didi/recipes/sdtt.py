"""SDTT students (Deschenaux and Gulcehre 2025, https://arxiv.org/abs/2410.21035) of the teachers of other recipes."""

from didi.methods.sdtt import SdttConfig
from didi.methods.settings import DistillationConfig, LoopConfig, OptimizerConfig


def sdtt(
    base: DistillationConfig, loop: LoopConfig, *, rounds: int, first_step: int, learning_rate: float, warmup_steps: int
) -> SdttConfig:
    """SDTT with the published loss and two teacher steps, on the data and the teacher of ``base``.

    AdamW has a constant rate after its warm-up and no weight decay, as in the public code, github.com/jdeschena/sdtt.
    """
    optimizer = OptimizerConfig(
        learning_rate=learning_rate, warmup_steps=warmup_steps, decay="constant", weight_decay=0.0
    )
    return SdttConfig(
        recipe=base.recipe,
        teacher=base.teacher,
        data=base.data,
        rounds=rounds,
        first_step=first_step,
        optimizer=optimizer,
        loop=loop,
    )
