"""Every field of the optimizers' settings changes the weights of student, discriminator and pre-trained network.

Over a few steps the weights are those of ``torch.optim.AdamW`` (or of Muon's formula), given the clipped gradients that
were recorded and a learning rate from the formula of the schedule. ``test_wiring`` tests the gradients themselves.
"""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from didi.methods.didi_settings import DiscriminatorSettings, DistillConfig, ObjectiveConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DataConfig, LoopConfig, NetworkConfig, OptimizerConfig
from didi.training.muon import orthogonalised

from .observed_step import observe_distillation, observe_pretraining

OPTIMIZER = OptimizerConfig(
    learning_rate=2e-3, warmup_steps=1, decay="linear", final_fraction=0.1, beta2=0.99, weight_decay=0.1, clip_norm=0.02
)
DISTILL = DistillConfig(
    data=DataConfig(corpus="markov", length=8),
    objective=ObjectiveConfig(),
    discriminator=DiscriminatorSettings(warmup_steps=1, guidance_steps=3),
    student_optimizer=OPTIMIZER,
    discriminator_optimizer=replace(OPTIMIZER, learning_rate=3e-3, beta1=0.8),
    loop=LoopConfig(steps=4, batch_size=4),
)
PRETRAIN = PretrainConfig(
    data=DataConfig(corpus="markov", length=8),
    network=NetworkConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8),
    optimizer=OPTIMIZER,
    loop=LoopConfig(steps=4, batch_size=4),
)
FIELDS = {
    "method": [{"method": "adamw"}, {"method": "muon"}],
    "muon_rate_scale": [{"method": "muon", "muon_rate_scale": scale} for scale in (2.5, 1.0)],
    "learning_rate": [{"learning_rate": rate} for rate in (2e-3, 5e-4)],
    "warmup_steps": [{"warmup_steps": number} for number in (0, 2, 6)],
    "decay": [{"decay": "constant", "final_fraction": 0.0}, {"decay": "linear"}, {"decay": "cosine"}],
    "final_fraction": [{"final_fraction": share} for share in (0.0, 0.5)],
    "beta1": [{"beta1": beta} for beta in (0.9, 0.5)],
    "beta2": [{"beta2": beta} for beta in (0.999, 0.9)],
    "weight_decay": [{"weight_decay": decay} for decay in (0.0, 0.5)],
    "clip_norm": [{"clip_norm": norm} for norm in (0.02, 1e-9, 100.0)],  # at 1e-9 the epsilon of AdamW matters
}


@pytest.fixture(scope="module")
def observe_settings(source, teacher, tmp_path_factory):
    """Steps of a distillation with these settings of its optimizers; the weights of both networks are checked."""

    def check(student, discriminator, steps=(1, 2, 3)):
        config = replace(
            DISTILL,
            student_optimizer=replace(DISTILL.student_optimizer, **student),
            discriminator_optimizer=replace(DISTILL.discriminator_optimizer, **discriminator),
        )
        observed = observe_distillation(config, list(steps), source, teacher, tmp_path_factory.mktemp("run"))
        for name in ("student", "discriminator"):
            assert_same_weights(observed.after[name], rebuilt_weights(config, name, observed.of(name)))
        return observed

    return check


def settings_and_rate(config, network, step):
    """Settings of the optimizer and learning rate of a step, from the phases of Algorithm 1 and the decay."""
    if network == "network":
        optimizer, number, num_updates = config.optimizer, step, config.loop.steps
    else:
        settings = config.discriminator
        num_updates = settings.warmup_steps + config.loop.steps
        if network == "student":
            optimizer, number, num_updates = config.student_optimizer, step - settings.warmup_steps, config.loop.steps
        elif step >= num_updates:
            optimizer, number, num_updates = config.discriminator_optimizer, step - num_updates, settings.guidance_steps
        else:
            optimizer, number = config.discriminator_optimizer, step
    peak, num_rising = optimizer.learning_rate, optimizer.warmup_steps
    if number < num_rising:
        return optimizer, peak * (number + 1) / num_rising
    done = (number - num_rising) / (num_updates - num_rising)
    fraction = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}[optimizer.decay]
    end = 1.0 if optimizer.decay == "constant" else optimizer.final_fraction
    return optimizer, peak * (end + (1 - end) * fraction)


def rebuilt_weights(config, network, updates):
    """Trained weights after the updates, by torch's AdamW and Muon's formula."""
    weights = {name: value.clone().requires_grad_(True) for name, value in updates[0].weights.items()}
    momentum = {name: torch.zeros_like(value) for name, value in weights.items()}
    settings, _ = settings_and_rate(config, network, updates[0].step)
    by_muon = {name for name in weights if settings.method == "muon" and is_matrix_of_a_block(name, weights[name])}
    adamw = torch.optim.AdamW(
        [
            {"params": [value], "weight_decay": settings.weight_decay if value.ndim >= 2 else 0.0}
            for name, value in weights.items()
            if name not in by_muon
        ],
        betas=(settings.beta1, settings.beta2),
    )
    for update in updates:
        _, rate = settings_and_rate(config, network, update.step)
        norm = torch.cat([value.flatten() for value in update.gradient.values()]).norm()
        scale = min(1.0, float(settings.clip_norm / (norm + 1e-6)))
        for name, gradient in update.gradient.items():
            if name in by_muon:
                muon_step(weights[name], momentum[name], scale * gradient, settings, rate)
            else:
                weights[name].grad = scale * gradient
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
    return {name: value.detach() for name, value in weights.items()}


def is_matrix_of_a_block(name, value):
    return "blocks." in name and value.ndim == 2 and "adaLN" not in name


@torch.no_grad()
def muon_step(weights, momentum, gradient, settings, rate):
    momentum.mul_(0.95).add_(gradient, alpha=0.05)
    step = orthogonalised((0.05 * gradient + 0.95 * momentum)[None])[0]
    rate = rate * settings.muon_rate_scale
    weights.mul_(1 - rate * settings.weight_decay).sub_(step, alpha=rate * 0.2 * math.sqrt(max(weights.shape)))


def assert_same_weights(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():  # steps are of size 1e-3; rounding of a weight near 1 is 1e-7
        torch.testing.assert_close(
            actual[name], value, rtol=0, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def largest_difference(first, second):
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


def test_every_field_is_covered():
    assert set(FIELDS) == {field.name for field in dataclasses.fields(OptimizerConfig)}


def assert_all_differ(runs):
    for number, first in enumerate(runs):
        for second in runs[:number]:
            assert largest_difference(first, second) > 5e-5


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_both_optimizers_of_a_distillation_changes_their_weights(observe_settings, field):
    values = FIELDS[field]
    rotated = values[1:] + values[:1]  # another value for the discriminator, so that an exchange of the two is seen
    runs = [observe_settings(*pair).after for pair in zip(values, rotated, strict=True)]
    for network in ("student", "discriminator"):
        assert_all_differ([run[network] for run in runs])


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_optimizer_of_a_pretraining_changes_the_weights(source, field):
    runs = []
    for settings in FIELDS[field]:
        config = replace(PRETRAIN, optimizer=replace(OPTIMIZER, **settings))
        observed = observe_pretraining(config, [1, 2, 3], source)
        runs.append(observed.after["network"])
        assert_same_weights(runs[-1], rebuilt_weights(config, "network", observed.updates))
    assert_all_differ(runs)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(0, 1, 2), (4, 5, 6, 7)], ids=["from the warm-up", "into guidance"])
@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_discriminator_has_one_schedule_up_to_the_last_student_step_and_one_for_guidance(
    observe_settings, decay, steps
):
    observed = observe_settings({}, {"decay": decay}, steps)
    assert [update.step for update in observed.of("discriminator")] == list(steps)
    assert [update.step for update in observed.of("student")] == [step for step in steps if 1 <= step < 5]


@pytest.mark.slow
def test_the_length_of_guidance_sets_its_schedule(source, teacher, tmp_path):
    def weights(guidance_steps):
        config = replace(DISTILL, discriminator=replace(DISTILL.discriminator, guidance_steps=guidance_steps))
        observed = observe_distillation(config, [5, 6, 7], source, teacher, tmp_path)
        expected = rebuilt_weights(config, "discriminator", observed.updates)
        assert_same_weights(observed.after["discriminator"], expected)
        return expected

    assert largest_difference(weights(3), weights(6)) > 5e-5


def test_frozen_blocks_have_no_optimizer(source, teacher, tmp_path):
    config = replace(DISTILL, discriminator=replace(DISTILL.discriminator, trainable_blocks=1))
    observed = observe_distillation(config, [1, 2], source, teacher, tmp_path)
    updates = observed.of("discriminator")
    of_trunk = {name for name in updates[0].weights if not name.startswith("output_layer.")}
    assert of_trunk < updates[0].weights.keys()
    assert {".".join(name.split(".")[:3]) for name in of_trunk} == {"trunk.blocks.1"}
    assert_same_weights(observed.after["discriminator"], rebuilt_weights(config, "discriminator", updates))
