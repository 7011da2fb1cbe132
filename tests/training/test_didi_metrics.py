"""Metrics that a step of DiDi-Instruct reports and that do not affect its gradients."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from didi.data.source import MarkovSource
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.methods.base import Inputs
from didi.methods.discriminator_step import discriminator_step_loss
from didi.methods.objective_settings import ObjectiveConfig
from didi.methods.regularisation import regularisation
from didi.methods.settings import DataConfig, LoopConfig
from didi.models.bundle import Bundle
from didi.training.trainer import make_trainer

from ..two_moves import MARKOV

LENGTH = 8


@pytest.fixture
def method(make_dit, tmp_path):
    config = replace(
        MARKOV,
        data=DataConfig(corpus="markov", length=LENGTH),
        loop=LoopConfig(steps=2, batch_size=4, validation_sequences=4),
    )
    teacher = Bundle(teacher=make_dit(vocab_size=33, length=LENGTH, seed=1))
    return make_trainer(config, Inputs(MarkovSource(LENGTH, seed=0), torch.device("cpu"), tmp_path, teacher)).method


def test_the_accuracy_is_the_share_of_correctly_classified_sequences(method, monkeypatch):
    logits = torch.tensor([0.5, -0.2, 2.0, -3.0, -0.5, 0.2, -2.0, -0.1])  # student's rows, then real ones
    monkeypatch.setattr(method.runtime, "call", lambda *args, **options: logits)
    states = torch.full((4, LENGTH), 32)
    _, metrics = method._compare(Canvas.free(states), Canvas.free(states), torch.full((4,), 0.5, dtype=torch.float64))
    assert float(metrics["discriminator_accuracy"]) == 5 / 8


def test_the_student_reports_rewards_and_the_entropy_of_its_last_move(method):
    drawn = method.prepare(method.warmup_steps, 0)
    loss, metrics = method._student_loss(drawn)
    rewards, of_rewards = method._rewards(drawn.rollout)
    assert float(metrics["reward"]) == pytest.approx(float(rewards.mean()))
    assert float(metrics["reward_std"]) == pytest.approx(float(rewards.std()))
    assert float(metrics["clamp_fraction"]) == float(of_rewards["clamp_fraction"])
    log_probs = drawn.rollout.second_log_probs.detach()
    expected = -torch.where(log_probs.isinf(), 0.0, log_probs.exp() * log_probs).sum(-1).mean()
    assert float(metrics["entropy"]) == pytest.approx(float(expected), rel=1e-5)
    assert not any(value.requires_grad for value in metrics.values())
    assert loss.requires_grad


def test_guidance_steps_need_no_rollout(method):
    assert method.prepare(method.last_student_step - 1, 0).rollout is not None
    assert method.prepare(method.last_student_step, 0).rollout is None


def test_tokens_per_step_count_all_completions(method):
    settings = method.settings
    assert method.tokens_per_step == 4 * settings.loop.accumulation * settings.objective.completions * LENGTH


def test_regularisers_are_summed_over_moves_and_the_entropy_of_the_last_move_is_logged():
    generator = torch.Generator().manual_seed(0)
    student, teacher = ([torch.randn(n, 5, generator=generator).log_softmax(-1) for n in (3, 2)] for _ in range(2))
    objective = ObjectiveConfig(divergence="backward", divergence_weight=0.5, entropy_weight=0.25)
    loss, metrics = regularisation(student, teacher, objective)
    entropies = [-(p.exp() * p).sum(-1).mean() for p in student]
    divergence = sum((p.exp() * (p - q)).sum(-1).mean() for p, q in zip(student, teacher, strict=True))
    torch.testing.assert_close(loss, 0.5 * divergence - 0.25 * sum(entropies))
    torch.testing.assert_close(metrics, {"entropy": entropies[1], "divergence": divergence})


def test_the_accuracy_leaves_out_padding(unchecked):
    """A sequence without masks is classified by the mean of its logits at all positions except padding."""
    logits = torch.tensor([[1.0, 1.0, -9.0, -9.0], [-1.0, -1.0, 9.0, 9.0]])  # student's row, then the real one
    runtime = SimpleNamespace(device=torch.device("cpu"), call=lambda *_: logits)
    discriminator = SimpleNamespace(train=lambda: None, is_time_conditioned=False)
    canvas = Canvas.padded(torch.zeros(1, 4, dtype=torch.long), torch.tensor([2]))
    arguments = Absorbing(4), canvas, canvas, torch.zeros(1), None, 0.0
    _, metrics = discriminator_step_loss(runtime, discriminator, *arguments)
    assert metrics["discriminator_accuracy"] == 1
    logits = torch.zeros(2, 4)  # neither side is classified
    assert discriminator_step_loss(runtime, discriminator, *arguments)[1]["discriminator_accuracy"] == 0
