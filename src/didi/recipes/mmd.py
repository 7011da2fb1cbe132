"""Recipes of the MMD method: chosen here for Markov chains and small text, the publication's for OpenWebText."""

from dataclasses import replace

from didi.methods.didi_settings import DistillConfig
from didi.methods.mmd_settings import MmdConfig, MmdFeatures, MmdObjective
from didi.methods.settings import LoopConfig, OptimizerConfig


def mmd_paths(
    base: DistillConfig, num_moves: int, features: MmdFeatures, *, learning_rate: float, steps: int, batch_size: int
) -> MmdConfig:
    """Whole paths of ``num_moves`` moves with teacher and data of another recipe.

    On ``exact`` a bandwidth of half the median distance was better than the median, since the kernel distinguishes
    more sequences.
    """
    return MmdConfig(
        recipe=base.recipe,
        teacher=base.teacher,
        data=base.data,
        objective=MmdObjective(
            trajectory="whole-path",
            moves=num_moves,
            completions=1,
            advantage="leave-one-out",
            features=features,
            bandwidths=(0.5,),
        ),
        optimizer=OptimizerConfig(learning_rate=learning_rate, beta2=0.99, weight_decay=0.0),
        loop=replace(base.loop, steps=steps, batch_size=batch_size, validate_every=max(1, steps // 2)),
    )


def mmd_published(base: DistillConfig) -> MmdConfig:
    """The run on OpenWebText of https://arxiv.org/abs/2610.06648, from its code's settings.

    These are configs/config.yaml and scripts/train_mmd_mdlm.sh of github.com/yandex-research/dlm-mmd.
    """
    return MmdConfig(
        recipe=base.recipe,
        teacher=base.teacher,
        data=base.data,
        objective=MmdObjective(layers=(4,)),  # feature_layer 3, from 0
        optimizer=OptimizerConfig(
            learning_rate=1e-4, decay="constant", weight_decay=0.0,
            warmup_steps=2500,  # lr_scheduler constant_warmup; its length from the public MDLM code
        ),
        loop=LoopConfig(
            steps=4000, ema_decay=0.9999,
            batch_size=8, accumulation=64,  # 512
            validate_every=250, checkpoint_every=250,
        ),
    )  # fmt: skip
