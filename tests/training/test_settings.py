"""Defaults and bounds of the settings, shortened settings, and upgrades of older ones."""

import dataclasses
import importlib
import math
import pkgutil
import typing
from dataclasses import asdict, replace

import pytest
import torch

import didi.diffusion
import didi.evaluation.exact
import didi.methods
import didi.objectives
import didi.sampling
from didi.errors import UsageError
from didi.methods.didi_settings import DiscriminatorSettings, DistillConfig, ObjectiveConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DataConfig, LoopConfig, NetworkConfig, OptimizerConfig, RunConfig

DATA = {"corpus": "news", "length": 128, "vocab_size": None, "tokenizer": None, "block_layout": None}
NETWORK = {"kind": "dit", "hidden_size": 768, "num_blocks": 12, "num_heads": 12, "cond_dim": 128, "dropout": 0.0,
           "is_time_conditioned": False, "conv_radius": 0}  # fmt: skip
OPTIMIZER = {"method": "adamw", "muon_rate_scale": 2.5, "learning_rate": 1e-4, "warmup_steps": 0, "decay": "linear",
             "final_fraction": 0.0, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "clip_norm": 1.0}  # fmt: skip
LOOP = {"steps": 10_000, "batch_size": 64, "accumulation": 1, "log_every": 20, "validate_every": 500,
        "validation_sequences": 256, "checkpoint_every": 200, "keep_checkpoints": 2, "max_skipped_steps": 0,
        "precision": "auto", "fsdp": False, "activation_checkpointing": False, "compile": False, "loggers": (),
        "ema_decay": 0.9999, "ema_ramp": True}  # fmt: skip
DISCRIMINATOR = {"output": "token", "trainable_blocks": None, "is_time_conditioned": True, "label_smoothing": 0.1,
                 "unsmooth": False, "warmup_steps": 300, "warmup_moves": 2, "steps_per_student_step": 1,
                 "fresh_rollouts": False, "completions": None, "real_source": "corpus", "pool_size": 4096,
                 "pool_nfe": 128, "guidance_steps": 0, "guidance_nfe": 8}  # fmt: skip
OBJECTIVE = {"trajectory": "two-moves", "moves": None, "budgets": (), "budget_conditioning": True, "reference_steps": 0,
             "initial_mask_ratio": 1.0, "latent_codes": 0, "latent_scale": 1.0,
             "reward_time": "finished", "coupled_time": True,
             "weight": "constant", "weight_low": 0.1, "weight_high": 10.0, "time_a": 1.0, "time_b": 1.0,
             "importance_weighting": False, "importance_clip": 10.0, "reward_reduction": "masked-mean",
             "reward_clamp": None, "completions": 1, "corruptions": 1, "advantage": "batch", "group_size": 4,
             "normalise_advantage": True, "advantage_clamp": None, "revealed_only": False, "pg_reduction": "sum",
             "divergence": "forward",
             "divergence_weight": 0.05, "entropy_weight": 0.0005}  # fmt: skip
RUN = {"recipe": "custom", "seed": 0, "data": DATA, "loop": LOOP}
# Lower bounds of fields, for each settings class.
LEAST = [
    (DataConfig, 2, ["length"]),
    (NetworkConfig, 1, ["hidden_size", "num_blocks", "num_heads", "cond_dim"]),
    (NetworkConfig, 0, ["conv_radius", "dropout"]),
    (
        OptimizerConfig,
        0,
        [
            *("learning_rate", "muon_rate_scale", "warmup_steps", "final_fraction", "weight_decay", "clip_norm"),
            *("beta1", "beta2"),
        ],
    ),
    (LoopConfig, 1, ["batch_size", "accumulation", "keep_checkpoints", "validation_sequences"]),
    (LoopConfig, 1, ["log_every", "validate_every", "checkpoint_every"]),
    (LoopConfig, 0, ["steps", "max_skipped_steps", "ema_decay"]),
    (DiscriminatorSettings, 0, ["warmup_steps", "guidance_steps", "label_smoothing"]),
    (DiscriminatorSettings, 1, ["steps_per_student_step", "pool_size", "pool_nfe", "guidance_nfe"]),
    (DiscriminatorSettings, 2, ["warmup_moves"]),
    (ObjectiveConfig, 1, ["completions", "corruptions", "group_size"]),
    (ObjectiveConfig, 0, ["divergence_weight", "entropy_weight", "weight_low", "importance_clip"]),
]
BELOW_ONE = [
    (NetworkConfig, "dropout"),
    (OptimizerConfig, "beta1"),
    (OptimizerConfig, "beta2"),
    (LoopConfig, "ema_decay"),
    (DiscriminatorSettings, "label_smoothing"),
]


def test_the_defaults_of_all_settings_are_unchanged():
    optimizers = {"student_optimizer": OPTIMIZER, "discriminator_optimizer": OPTIMIZER}
    own = {"teacher": "", "objective": OBJECTIVE, "discriminator": DISCRIMINATOR, "lora_rank": None, "start": ""}
    assert asdict(DistillConfig()) == RUN | own | optimizers
    own = {"model": "masked-diffusion", "process": "absorbing", "schedule": "log-linear", "t_min": 1e-3, "start": ""}
    assert asdict(PretrainConfig()) == RUN | own | {"weight": "nelbo", "network": NETWORK, "optimizer": OPTIMIZER}


@pytest.mark.parametrize(
    ("kind", "least", "name"), [(kind, least, name) for kind, least, names in LEAST for name in names]
)
def test_the_lower_bound_is_allowed_and_less_is_refused(kind, least, name):
    assert getattr(kind(**{name: type(getattr(kind(), name))(least)}), name) == least
    less = least - 0.5 if isinstance(getattr(kind(), name), float) else least - 1
    with pytest.raises(UsageError, match=f"^{name} (is {least} or more|lies in .*); got {less}$"):
        kind(**{name: less})


@pytest.mark.parametrize(("kind", "name"), BELOW_ONE)
def test_fractions_are_less_than_1(kind, name):
    with pytest.raises(UsageError, match=rf"^{name} lies in \[0, 1\); got 1.0$"):
        kind(**{name: 1.0})


@pytest.mark.parametrize("kind", [RunConfig, PretrainConfig])
def test_a_run_without_steps_is_refused(kind):
    with pytest.raises(UsageError, match=r"^steps is 1 or more; got 0$"):
        kind(loop=LoopConfig(steps=0))


def test_a_distillation_without_updates_of_the_student_needs_guidance_steps():
    with_guidance, loop = DiscriminatorSettings(warmup_steps=4, guidance_steps=7), LoopConfig(steps=0)
    with pytest.raises(UsageError, match=r"^loop.steps is 1 or more, or 0 with .*guidance_steps .*; got 0 for both"):
        DistillConfig(loop=loop)
    config = DistillConfig(loop=loop, discriminator=with_guidance)
    assert config.num_steps == 11
    cut = config.limited(3)
    assert (cut.loop.steps, cut.discriminator.warmup_steps, cut.discriminator.guidance_steps) == (0, 3, 3)


@pytest.mark.parametrize("name", ["learning_rate", "beta1"])
def test_nan_is_refused(name):
    with pytest.raises(UsageError, match="got nan"):
        OptimizerConfig(**{name: float("nan")})


KINDS = [
    NetworkConfig,
    OptimizerConfig,
    LoopConfig,
    DiscriminatorSettings,
    ObjectiveConfig,
    PretrainConfig,
    DistillConfig,
    DataConfig,
]
NUMBERS = [
    (kind, name)
    for kind in KINDS
    for name, hint in typing.get_type_hints(kind).items()
    if float in (hint, *typing.get_args(hint))
]
UNBOUNDED = {"clip_norm", "weight_high", "importance_clip"}


def test_float_settings_are_among_the_tested_numbers():
    assert {"learning_rate", "t_min", "time_a", "reward_clamp", "weight_high"} <= {name for _, name in NUMBERS}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_infinity_is_allowed_only_for_optional_bounds(kind, name, value):
    if name in UNBOUNDED and value == math.inf:
        assert getattr(kind(**{name: value}), name) == math.inf
        return
    with pytest.raises(UsageError, match=rf"{name} .*; got {value}$"):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ObjectiveConfig(weight_low=5.0, weight_high=1.0),
            "objective.weight_low is at most objective.weight_high; got 5.0 and 1.0: lower the former or raise",
        ),
        (lambda: ObjectiveConfig(reward_clamp=-1.0), "reward_clamp is positive; got -1.0"),
        (lambda: ObjectiveConfig(advantage_clamp=0.0), "advantage_clamp is positive; got 0.0"),
        (lambda: ObjectiveConfig(time_a=0.0), "time_a is positive; got 0.0"),
        (lambda: ObjectiveConfig(time_b=-2.0), "time_b is positive; got -2.0"),
        (lambda: PretrainConfig(t_min=1.0), r"t_min lies in \[0, 1\); got 1.0"),
        (lambda: OptimizerConfig(final_fraction=1.5), r"final_fraction lies in \[0, 1\]; got 1.5"),
        (
            lambda: OptimizerConfig(final_fraction=0.1, decay="constant"),
            "final_fraction is 0 with decay constant; got 0.1",
        ),
        (
            lambda: DiscriminatorSettings(unsmooth=True, label_smoothing=0.0),
            "discriminator.unsmooth needs a positive discriminator.label_smoothing; got 0",
        ),
        (lambda: RunConfig(seed=2**64), "seed lies in .*; got 18446744073709551616"),
        (lambda: RunConfig(seed=-(2**63) - 1), "seed lies in .*; got -9223372036854775809"),
        (
            lambda: DistillConfig(objective=ObjectiveConfig(advantage="rows", group_size=1)),
            "objective.group_size is 2 or more for objective.advantage rows; got 1",
        ),
        (
            lambda: DistillConfig(loop=LoopConfig(batch_size=1)),
            "advantage batch needs two samples or more; got loop.batch_size 1 and objective.completions 1",
        ),
        (
            lambda: DistillConfig(objective=ObjectiveConfig(advantage="shared-state")),
            "shared-state needs loop.batch_size and objective.completions of 2 or more; got 64 and 1",
        ),
        (
            lambda: DistillConfig(objective=ObjectiveConfig(advantage="leave-one-out", completions=2)),
            "leave-one-out needs loop.batch_size of 2 or more and objective.completions 1; got 64 and 2",
        ),
    ],
)
def test_contradictory_settings_are_refused_by_name(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_unknown_loggers_are_refused_by_name():
    assert LoopConfig(loggers=("wandb", "tensorboard")).loggers == ("wandb", "tensorboard")
    with pytest.raises(UsageError, match=r"some of tensorboard, wandb; got csv, mlflow$"):
        LoopConfig(loggers=("csv", "wandb", "mlflow"))


def test_muon_needs_whole_matrices():
    muon, sharded = OptimizerConfig(method="muon"), LoopConfig(fsdp=True)
    for part in ("student_optimizer", "discriminator_optimizer"):
        assert getattr(DistillConfig(**{part: muon}), part) == muon
        with pytest.raises(UsageError, match="fsdp needs AdamW"):
            DistillConfig(**{part: muon}, loop=sharded)
    with pytest.raises(UsageError, match="fsdp needs AdamW"):
        PretrainConfig(optimizer=muon, loop=sharded)
    assert DistillConfig(loop=sharded).loop.fsdp


def test_limited_settings_shorten_all_phases():
    assert RunConfig(loop=LoopConfig(steps=50)).limited(4).loop == LoopConfig(steps=4)
    config = DistillConfig(discriminator=DiscriminatorSettings(warmup_steps=9, guidance_steps=3))
    for max_steps, warmup, guidance in ((2, 2, 2), (5, 5, 3), (20, 9, 3)):
        cut = config.limited(max_steps)
        phases = {"warmup_steps": warmup, "guidance_steps": guidance}
        assert cut == replace(
            config,
            loop=replace(config.loop, steps=max_steps),
            discriminator=replace(config.discriminator, **phases),
        )
        assert cut.num_steps == warmup + max_steps + guidance


def test_a_dry_run_draws_a_pool_of_one_batch_in_one_pass():
    config = DistillConfig(loop=LoopConfig(batch_size=64))
    assert config.for_dry_run() == replace(config, discriminator=DiscriminatorSettings(pool_size=64, pool_nfe=1))
    assert RunConfig().for_dry_run() == RunConfig()


def test_an_upgrade_does_not_change_settings_of_this_version():
    settings = {"recipe": "markov", "loop": {"steps": 3}}
    for kind in (RunConfig, PretrainConfig, DistillConfig):
        assert kind.upgraded(settings) == settings
        assert kind.upgraded(settings) is not settings


def test_the_warm_up_has_its_own_trajectories():
    def of_warmup(warmup_moves=2, **objective):
        settings = DiscriminatorSettings(warmup_moves=warmup_moves)
        config = DistillConfig(objective=ObjectiveConfig(**objective), discriminator=settings)
        return config.warmup_objective.trajectory, config.warmup_objective.moves

    assert of_warmup() == ("two-moves", None)
    assert of_warmup(trajectory="one-step") == ("one-step", None)
    assert of_warmup(trajectory="path", moves=8) == ("two-moves", None)
    assert of_warmup(3) == ("path", 3)
    assert of_warmup(5, trajectory="path", moves=8) == ("path", 5)


@pytest.mark.parametrize(
    "package", [didi.diffusion, didi.evaluation.exact, didi.methods, didi.objectives, didi.sampling]
)
def test_all_dataclasses_are_frozen(package):
    modules = [
        importlib.import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    ]
    records = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
    }
    assert records or package is didi.objectives
    assert not [kind for kind in records if not kind.__dataclass_params__.frozen]


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_the_smallest_and_the_largest_seed_are_allowed(seed):
    assert torch.Generator().manual_seed(RunConfig(seed=seed).seed).initial_seed() == seed % 2**64
