"""Weights after short runs, samples and one evaluation row are those in ``golden.json``; see ``conftest.py``."""

from dataclasses import asdict, replace
from functools import cache

import pytest
import torch

from didi.apps.train import distill_run, pretrain_run
from didi.evaluation.evaluate import evaluate
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle, load
from didi.recipes import PRETRAIN
from didi.recipes.objectives import whole_path
from didi.recipes.presets import preset
from didi.sampling.confidence import ConfidenceOrder
from didi.sampling.generate import generate
from didi.sampling.guided import Guidance
from didi.sampling.remasking import Remasking
from didi.training.loop import RunFolder

from .. import two_moves

CPU = torch.device("cpu")
LENGTH = 16


def short(config, *, steps=3, **loop):
    """The recipe with a few steps on short sequences."""
    cut = {"steps": steps, "batch_size": 8, "validation_sequences": 8, **loop}
    return replace(config, data=replace(config.data, length=LENGTH), loop=replace(config.loop, **cut))


def with_discriminator(config, **changes):
    return replace(config, discriminator=replace(config.discriminator, **changes))


def with_objective(config, **changes):
    return replace(config, objective=replace(config.objective, **changes))


PRETRAINED = {
    "nelbo": short(PRETRAIN["markov"], steps=4),
    "muon, constant weight": replace(short(PRETRAIN["markov"], accumulation=2), weight="constant",
                                     optimizer=PRETRAIN["tiny-news"].optimizer),
    "conditioned, dropout": replace(short(PRETRAIN["markov"]), network=replace(
        PRETRAIN["markov"].network, is_time_conditioned=True, dropout=0.1, conv_radius=1)),
    "autoregressive": replace(short(PRETRAIN["markov"]), model="autoregressive"),
}  # fmt: skip
MARKOV = short(two_moves.MARKOV)
DISTILLED = {
    "warm-up": with_discriminator(short(two_moves.MARKOV, steps=1), warmup_steps=4),
    "student": with_discriminator(short(two_moves.MARKOV, steps=4), warmup_steps=1),
    "guidance": with_discriminator(short(two_moves.MARKOV, steps=1), warmup_steps=1, guidance_steps=3, guidance_nfe=4),
    "accumulation": with_discriminator(short(two_moves.MARKOV, accumulation=2), warmup_steps=2),
    "eight moves": with_discriminator(
        with_objective(MARKOV, trajectory="path", moves=8), warmup_steps=1, completions=1
    ),
    "whole paths": with_discriminator(
        replace(MARKOV, objective=whole_path(4)), warmup_steps=1, output="sequence", steps_per_student_step=2,
        fresh_rollouts=True,
    ),
    "two updates": with_discriminator(MARKOV, warmup_steps=1, steps_per_student_step=2),
    "one-step generator": with_discriminator(
        with_objective(MARKOV, trajectory="one-step", coupled_time=False, completions=1, advantage="rows"),
        warmup_steps=1, trainable_blocks=1, output="sequence",
    ),
    "paper": with_discriminator(preset(MARKOV, "paper"), warmup_steps=1, pool_size=16, pool_nfe=4),
    "released": with_discriminator(preset(MARKOV, "released"), warmup_steps=1),
    "adapters": replace(with_discriminator(MARKOV, warmup_steps=1), lora_rank=2),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAINED)
def test_weights_after_pre_training_are_the_recorded_ones(name, matches, tmp_path):
    bundle = load(pretrain_run(PRETRAINED[name], RunFolder(tmp_path / "run"), resume=False, device=CPU))
    role = "autoregressive" if name == "autoregressive" else "teacher"
    matches(f"pretrain: {name}", {role: getattr(bundle, role)})


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTILLED)
def test_weights_after_distillation_are_the_recorded_ones(name, matches, tmp_path):
    bundle = load(distill_run(DISTILLED[name], RunFolder(tmp_path / "run"), resume=False, device=CPU))
    matches(f"distill: {name}", {"student": bundle.student, "discriminator": bundle.discriminator})


SAMPLERS = {
    "ancestral": {},
    "float32": {"precision": "float32"},
    "temperature and top-p": {"temperature": 0.8, "top_p": 0.9, "grid": "cosine"},
    "tau-leaping": {"sampler": "tau-leaping"},
    "guided": {"sampler": "guided", "guidance": Guidance()},
    "guided, best": {"sampler": "guided", "guidance": Guidance(tilted_fraction=0.5, select="best", num_candidates=2)},
    "first-hitting": {"sampler": "first-hitting"},
    "confidence": {"sampler": "confidence", "order": ConfidenceOrder(gumbel=1.0)},
    "entropy-bounded": {"sampler": "entropy-bounded", "entropy_bound": 2.0},
    "remasking": {"sampler": "remasking", "remask": Remasking("rescale", 0.5)},
    "given times": {"times": (1.0, 0.7, 0.2, 0.0)},
    "prefix": {"prefix": "The prime minister"},
    "infill": {"infill": "The[MASK][MASK] said", "sampler": "guided", "guidance": Guidance()},
}


@cache
def tiny_news():
    bundle = load("tiny-news")
    torch.manual_seed(0)
    mask_id = bundle.network().mask_id
    shape = AutoregressiveConfig(mask_id + 1, mask_id, LENGTH, hidden_size=16, num_blocks=1, num_heads=2)
    bundle.autoregressive = AutoregressiveLM(shape).eval()
    return bundle


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_the_recorded_ones(name, matches):
    drawn = generate(tiny_news(), num_samples=3, nfe=6, seed=7, length=LENGTH, **SAMPLERS[name])
    passes = {"student": drawn.network_passes, "discriminator": drawn.discriminator_passes}
    matches(f"samples: {name}", tokens={"tokens": drawn.tokens, **passes})


def test_samples_of_the_autoregressive_baseline_are_the_recorded_ones(matches):
    drawn = generate(tiny_news(), num_samples=3, seed=7, role="autoregressive", prefix="The prime")
    matches("samples: autoregressive", tokens={"tokens": drawn.tokens})


@pytest.mark.slow
def test_an_evaluation_row_is_the_recorded_one(matches):
    teacher = load("markov")
    bundle = Bundle(**{**vars(teacher), "student": teacher.teacher})
    (row,) = evaluate(bundle, nfe=[4], num_samples=64, seed=3)
    timed = ("seconds_per_sequence", "tokens_per_second")
    numbers = {name: value for name, value in asdict(row).items() if isinstance(value, float) and name not in timed}
    matches("evaluation", figures={name: value for name, value in numbers.items() if value == value})
