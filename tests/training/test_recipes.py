"""Recipes and presets: published settings, numbers of parameters, names, and teachers."""

from dataclasses import asdict

import pytest
import torch

from didi.data.source import RandomSource
from didi.diffusion import find_process
from didi.diffusion.schedule import schedule_from_name
from didi.diffusion.score import ScoreAbsorbing
from didi.errors import UsageError
from didi.methods.new_networks import denoiser_shape, make_denoiser
from didi.models.bundle import bundled_names
from didi.models.discriminator import Discriminator, DiscriminatorConfig, num_parameters
from didi.models.dit import DiT, DiTConfig
from didi.recipes import DISTILL, PRETRAIN, recipe, teacher_shape
from didi.recipes.presets import PRESETS, preset

GPT2_SYMBOLS = 50_258  # with the mask
UNIFORM_STATE = ("markov", "exact", "tiny-news", "owt-169m")


@pytest.mark.parametrize(
    ("name", "of_denoiser", "of_discriminator"),
    [("owt-169m", 169_627_218, 131_371_265), ("owt-424m", 424_477_010, 373_747_969)],
)
def test_paper_scale_recipes_have_the_parameters_of_tables_3_and_4(name, of_denoiser, of_discriminator):
    config = PRETRAIN[name]
    shape = asdict(
        denoiser_shape(config.network, vocab_size=GPT2_SYMBOLS, mask_id=GPT2_SYMBOLS - 1, length=config.data.length)
    )
    with torch.device("meta"):
        assert num_parameters(DiT(DiTConfig(**shape))) == of_denoiser
        discriminator = Discriminator(DiscriminatorConfig(**{**shape, "is_time_conditioned": True}))
    assert num_parameters(discriminator) == of_discriminator
    discriminator.train_last_blocks(DISTILL[name].discriminator.trainable_blocks)


@pytest.mark.parametrize("name", ["owt-169m-udlm", "owt-169m-duo", "owt-169m-sedd-uniform"])
def test_uniform_state_recipes_have_the_network_of_table_3_without_the_mask(name):
    config, source = PRETRAIN[name], RandomSource(1024, GPT2_SYMBOLS)
    kind, schedule = find_process(config.process), schedule_from_name(config.schedule)
    process = kind.of_tokenizer(source.vocab_size, source.mask_id, schedule)
    with torch.device("meta"):
        network = make_denoiser(config, source, process)
    assert (network.vocab_size, network.mask_id, network.length) == (50_257, None, 1024)
    assert network.is_time_conditioned
    # One embedding, one row of the head and one bias less than with [MASK].
    assert num_parameters(network) == 169_627_218 - (2 * 768 + 1) == 169_625_681


def test_sedd_recipes_have_the_settings_of_the_public_code():
    """configs/config.yaml and configs/model/small.yaml of github.com/louaaron/Score-Entropy-Discrete-Diffusion."""
    for kind in ("absorb", "uniform"):
        config = PRETRAIN[f"owt-169m-sedd-{kind}"]
        assert (config.process, config.schedule, config.data.length) == (f"sedd-{kind}", "log-linear-eps", 1024)
        assert (config.data.block_layout, config.network.is_time_conditioned, config.network.dropout) == (
            None,
            True,
            0.1,
        )
        optimizer, loop = config.optimizer, config.loop
        assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.decay) == (3e-4, 2500, "constant")
        assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.clip_norm) == (0.9, 0.999, 0.0, 1.0)
        assert (loop.steps, loop.batch_size * loop.accumulation, loop.ema_decay) == (1_300_000, 512, 0.9999)
    absorb = PRETRAIN["owt-169m-sedd-absorb"]
    with torch.device("meta"):
        network = make_denoiser(absorb, RandomSource(1024, GPT2_SYMBOLS), ScoreAbsorbing(GPT2_SYMBOLS - 1))
    assert num_parameters(network) == 169_627_218


def test_duo_recipes_have_the_settings_of_the_public_code():
    """configs/config.yaml and scripts/train_owt_duo.sh of github.com/s-sahoo/duo."""
    base, duo = PRETRAIN["owt-169m-udlm"], PRETRAIN["owt-169m-duo"]
    for settings in (base, duo):
        assert (settings.process, settings.weight) == ("uniform", "nelbo")
        assert (settings.schedule, settings.t_min) == ("log-linear", 1e-3)
        optimizer = settings.optimizer
        assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.decay) == (3e-4, 2500, "constant")
        assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.clip_norm) == (0.9, 0.999, 0.0, 1.0)
        assert settings.loop.batch_size * settings.loop.accumulation == 512
        assert (settings.loop.steps, settings.loop.ema_decay) == (1_000_000, 0.9999)
        assert (settings.network.dropout, settings.data.length, settings.data.block_layout) == (0.1, 1024, "bos-eos")
    curriculum = duo.curriculum
    assert (curriculum.start, curriculum.end) == (0, 500_000)
    assert (curriculum.tau(0), curriculum.tau(499_999)) == (pytest.approx(1e-3), pytest.approx(1e-3))
    schedule = curriculum.schedule(50_257)
    assert (schedule.gamma_min, schedule.gamma_max) == (-3.55, -1.85)


@pytest.mark.parametrize("name", UNIFORM_STATE)
def test_uniform_state_recipes_differ_from_each_other_by_the_curriculum_alone(name):
    base, duo = asdict(PRETRAIN[f"{name}-udlm"]), asdict(PRETRAIN[f"{name}-duo"])
    curriculum = duo.pop("curriculum")
    assert duo == base | {"recipe": f"{name}-duo"}
    assert curriculum["end"] == base["loop"]["steps"] / 2
    if name != "owt-169m":  # whose udlm recipe has the learning rates of the public code
        own = {"recipe", "process", "weight", "network"}
        masked = asdict(PRETRAIN[name])
        assert {key: value for key, value in base.items() if value != masked[key]}.keys() <= own


def test_the_recipe_owt_169m_has_the_settings_of_table_5():
    teacher, student = PRETRAIN["owt-169m"], DISTILL["owt-169m"]
    assert (teacher.optimizer.learning_rate, teacher.optimizer.warmup_steps, teacher.optimizer.decay) == (
        1e-4, 2500, "cosine",
    )  # fmt: skip
    assert (teacher.optimizer.beta1, teacher.optimizer.beta2, teacher.optimizer.weight_decay) == (0.9, 0.95, 0.05)
    assert teacher.loop.batch_size * teacher.loop.accumulation == 336
    assert (student.student_optimizer.learning_rate, student.student_optimizer.decay) == (1e-6, "linear")
    assert (student.student_optimizer.beta2, student.student_optimizer.weight_decay) == (0.999, 0.01)
    assert (student.loop.steps, student.loop.batch_size, student.loop.ema_decay) == (10_000, 8, 0.9999)


@pytest.mark.parametrize("recipes", [PRETRAIN, DISTILL], ids=["pretrain", "distill"])
def test_every_recipe_is_found_under_its_own_name(recipes):
    variants = {"tiny-news-ar", "prose-ar"}
    variants |= {f"{name}-{kind}" for name in UNIFORM_STATE for kind in ("udlm", "duo", "sedd-absorb", "sedd-uniform")}
    others = {"dplm-150m"} if recipes is DISTILL else {"swissprot-ar", "antibody-ar"}
    assert set(recipes) - variants - others == {
        "markov", "exact", "tiny-news", "prose", "owt-169m", "owt-424m", "swissprot", "antibody"
    }  # fmt: skip
    assert others <= set(recipes)
    for name in recipes:
        assert recipe(recipes, name).recipe == name
    with pytest.raises(UsageError, match="did you mean 'markov'"):
        recipe(recipes, "markof")


@pytest.mark.parametrize("name", DISTILL)
def test_distillation_recipes_name_a_bundled_teacher_or_none(name):
    assert DISTILL[name].teacher in ["", *bundled_names()]
    assert DISTILL[name].data.length == teacher_shape(name).length


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_changes_objective_and_discriminator_and_leaves_data_and_rates(name):
    base, config = DISTILL["tiny-news"], preset(DISTILL["tiny-news"], name)
    assert (config.data, config.student_optimizer, config.teacher) == (base.data, base.student_optimizer, base.teacher)
    expected = (3, True) if name == "two-moves" else (1, False)
    assert (config.objective.completions, config.objective.revealed_only) == expected
    assert (config.objective.trajectory, config.discriminator.guidance_steps) == ("two-moves", 0)
    assert config.objective.divergence_weight == {"paper": 0.05, "released": 0.0005, "two-moves": 0.35}[name]
    with pytest.raises(UsageError, match="a preset is one of paper, released"):
        preset(base, "papers")


def test_the_preset_of_the_released_code_has_its_labels_and_its_bounds():
    released = preset(DISTILL["tiny-news"], "released")
    objective, discriminator = released.objective, released.discriminator
    student_label = 1 - discriminator.label_smoothing / 2
    assert (student_label, discriminator.label_smoothing / 2) == pytest.approx((0.9, 0.1))
    assert (objective.advantage, objective.group_size, objective.advantage_clamp) == ("rows", 4, 3.0)
    assert (objective.reward_clamp, objective.weight_low, objective.weight_high) == (8.0, 0.1, 10.0)
    for name in ("paper", "two-moves"):
        assert preset(DISTILL["tiny-news"], name).objective.advantage_clamp is None
