"""Recipes for proteins (Sec. 5.4): ``swissprot`` and ``antibody`` for a laptop, ``dplm-150m`` as in the paper."""

from collections.abc import Mapping
from dataclasses import replace

from didi.methods.didi_settings import DiscriminatorSettings, DistillConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DataConfig, LoopConfig, NetworkConfig, OptimizerConfig
from didi.models.esm2 import SIZES, Esm2Config
from didi.recipes.objectives import TWO_MOVES, paths_discriminator, paths_optimizer, whole_path

# Proteins of 50 to 254 residues between their begin and end symbols. The judge is trained on the other half of
# the clusters.
_SWISSPROT_DATA = DataConfig(corpus="swissprot:first", length=256)

SWISSPROT = PretrainConfig(
    recipe="swissprot",
    weight="constant",
    data=_SWISSPROT_DATA,
    network=NetworkConfig(kind="esm2", hidden_size=288, num_blocks=6, num_heads=6, conv_radius=2),
    optimizer=OptimizerConfig(
        method="muon", learning_rate=3e-3, muon_rate_scale=2.5, warmup_steps=100, beta2=0.98, weight_decay=0.05
    ),
    loop=LoopConfig(
        steps=20_000, batch_size=16, log_every=50, validate_every=500, validation_sequences=512, checkpoint_every=100,
        ema_decay=0.999,
    ),
)  # fmt: skip

# Heavy chains of half of the clones; AntiBERTy (didi convert antiberty) is trained further, with its own dropout. The
# judge, a new network, is trained on the other half.
_ANTIBODY_DATA = DataConfig(corpus="vh:first", length=160)

ANTIBODY = PretrainConfig(
    recipe="antibody",
    weight="constant",
    start="./bundles/antiberty",
    data=_ANTIBODY_DATA,
    network=NetworkConfig(kind="bert", hidden_size=512, num_blocks=8, num_heads=8, dropout=0.1),
    optimizer=OptimizerConfig(learning_rate=5e-5, warmup_steps=30, beta2=0.98, weight_decay=0.01),
    loop=LoopConfig(
        steps=400, batch_size=8, log_every=5, validate_every=50, validation_sequences=100, checkpoint_every=10,
        ema_decay=0.99,
    ),
)  # fmt: skip

PRETRAIN: dict[str, PretrainConfig] = {
    "swissprot": SWISSPROT,
    "swissprot-ar": replace(
        SWISSPROT,
        recipe="swissprot-ar",
        model="autoregressive",
        data=replace(_SWISSPROT_DATA, corpus="swissprot:second"),
        network=NetworkConfig(hidden_size=288, num_blocks=6, num_heads=6, dropout=0.1),
    ),
    "antibody": ANTIBODY,
    "antibody-ar": PretrainConfig(
        recipe="antibody-ar",
        model="autoregressive",
        data=replace(_ANTIBODY_DATA, corpus="vh:second"),
        network=NetworkConfig(hidden_size=128, num_blocks=4, num_heads=4, dropout=0.2),
        optimizer=replace(SWISSPROT.optimizer, warmup_steps=50),
        loop=replace(ANTIBODY.loop, steps=1500, log_every=50, validate_every=100, checkpoint_every=100),
    ),
}

DISTILL: dict[str, DistillConfig] = {
    "swissprot": DistillConfig(
        recipe="swissprot",
        teacher="swissprot",
        data=_SWISSPROT_DATA,
        objective=whole_path(8),
        discriminator=paths_discriminator(warmup_steps=60, steps_per_student_step=2, guidance_steps=150),
        student_optimizer=paths_optimizer(3e-4),
        discriminator_optimizer=paths_optimizer(1e-3),
        loop=LoopConfig(steps=500, batch_size=24, validate_every=250, checkpoint_every=25, ema_decay=0.98),
    ),
    "antibody": DistillConfig(
        recipe="antibody",
        data=_ANTIBODY_DATA,
        objective=whole_path(8),
        discriminator=paths_discriminator(warmup_steps=30, steps_per_student_step=2, guidance_steps=50),
        student_optimizer=paths_optimizer(1e-5),
        discriminator_optimizer=paths_optimizer(3e-5),
        loop=LoopConfig(steps=60, batch_size=12, log_every=10, validate_every=20, checkpoint_every=10, ema_decay=0.98),
    ),
    "dplm-150m": DistillConfig(
        recipe="dplm-150m",
        data=DataConfig(
            corpus="uniref50.fasta",  # App. F.6; a file of the user
            length=1024,  # App. F.6; longer proteins are left out, not cut
        ),
        objective=TWO_MOVES,
        discriminator=DiscriminatorSettings(
            output="sequence",  # App. F.6: a scalar
            trainable_blocks=4,  # as for text, row 8
            warmup_steps=1000,  # App. F.6
        ),
        student_optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=1000, decay="linear", weight_decay=0.01),
        discriminator_optimizer=OptimizerConfig(
            learning_rate=5e-6, warmup_steps=1000, decay="linear", weight_decay=0.01
        ),  # App. F.6; the rest as for text, Table 5
        loop=LoopConfig(
            steps=10_000,  # Table 5
            batch_size=4,  # App. F.6: batches of up to 4096 tokens
            validate_every=1000, checkpoint_every=500,
        ),
    ),
}  # fmt: skip

TEACHERS: Mapping[str, Esm2Config] = {"dplm-150m": SIZES["150m"]}
"""Shapes of published teachers, by the recipe that distils them; ``didi convert`` makes their bundles."""
