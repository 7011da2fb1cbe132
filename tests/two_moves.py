"""A short recipe for tests: ``markov`` with the preset ``two-moves`` and the learning rates of an older version."""

from dataclasses import replace

from didi.methods.settings import LoopConfig, OptimizerConfig
from didi.recipes import DISTILL
from didi.recipes.presets import preset

_PRESET = preset(DISTILL["markov"], "two-moves")
MARKOV = replace(
    _PRESET,
    discriminator=replace(_PRESET.discriminator, warmup_steps=300),
    student_optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=0.0),
    discriminator_optimizer=OptimizerConfig(learning_rate=1e-3),
    loop=LoopConfig(steps=900, batch_size=64, validate_every=300, checkpoint_every=100, ema_decay=0.99),
)
