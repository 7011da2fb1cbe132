"""Settings of a distillation of a few steps, and helpers to change them and compare weights."""

from dataclasses import replace

import torch

from didi.methods.didi_settings import DiscriminatorSettings, DistillConfig, ObjectiveConfig
from didi.methods.settings import DataConfig, LoopConfig, OptimizerConfig

CPU = torch.device("cpu")
CONFIG = DistillConfig(
    data=DataConfig(corpus="markov", length=8),
    objective=ObjectiveConfig(completions=2, advantage="shared-state", revealed_only=True),
    discriminator=DiscriminatorSettings(warmup_steps=2, pool_size=16, pool_nfe=2),
    student_optimizer=OptimizerConfig(learning_rate=1e-3),
    discriminator_optimizer=OptimizerConfig(learning_rate=1e-3),
    loop=LoopConfig(
        steps=3,
        batch_size=4,
        log_every=1,
        validate_every=2,
        validation_sequences=16,
        checkpoint_every=2,
        ema_decay=0.5,
    ),
)

# Keyword arguments of ``ObjectiveConfig``: a state of a path, a whole path, completions of its states, several budgets.
PATH = {"trajectory": "path", "moves": 4}
WHOLE = {
    "trajectory": "whole-path", "moves": 3, "completions": 1, "advantage": "leave-one-out", "revealed_only": False,
    "divergence_weight": 0.0, "entropy_weight": 0.0,
}  # fmt: skip
BRANCHES = WHOLE | {"completions": 3, "advantage": "shared-state"}
BUDGETS = WHOLE | {"moves": None, "budgets": (2, 5)}


def with_objective(**changes):
    return replace(CONFIG, objective=replace(CONFIG.objective, **changes))


def with_discriminator(**changes):
    return replace(CONFIG, discriminator=replace(CONFIG.discriminator, **changes))


def with_loop(**changes):
    return replace(CONFIG, loop=replace(CONFIG.loop, **changes))


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def assert_trains(job, num_steps=3):
    start = weights(job.method.student)
    for step in range(num_steps):
        metrics = job.step(step)
        bad = [name for name, value in metrics.items() if not torch.isfinite(torch.as_tensor(value))]
        assert not bad
    assert metrics["student_gradient_norm"] > 0
    assert not equal(start, weights(job.method.student))
