"""The runs of the paper (Tables 3-5) on OpenWebText."""

from dataclasses import replace

from didi.methods.dcd import DcdConfig
from didi.methods.didi_settings import DiscriminatorSettings, DistillConfig
from didi.methods.duo import CurriculumConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DataConfig, DistillationConfig, LoopConfig, NetworkConfig, OptimizerConfig
from didi.recipes import dimo
from didi.recipes.mmd import mmd_published
from didi.recipes.objectives import TWO_MOVES
from didi.recipes.score import sedd_absorb, sedd_uniform
from didi.recipes.sdtt import sdtt
from didi.recipes.uniform_state import duo, udlm

OWT = DataConfig(
    corpus="Skylion007/openwebtext",  # App. E.2
    length=1024,  # Table 3
    tokenizer="gpt2",  # App. E.2; 50,257 tokens, and the mask
)

# Uniform-state teachers (Sahoo et al. 2025, https://arxiv.org/abs/2506.10892); comments name files of the public code,
# github.com/s-sahoo/duo.
_UNIFORM_STATE = PretrainConfig(
    recipe="owt-169m",
    data=replace(OWT, block_layout="bos-eos"),  # _group_texts of dataloader.py
    network=NetworkConfig(  # model=small: the network of Table 3, as in the public MDLM code
        hidden_size=768, num_blocks=12, num_heads=12, dropout=0.1, is_time_conditioned=True
    ),
    optimizer=OptimizerConfig(
        learning_rate=3e-4, beta2=0.999, weight_decay=0.0, clip_norm=1.0,  # configs/config.yaml
        warmup_steps=2500, decay="constant",  # lr_scheduler constant_warmup; its length from the public MDLM code
    ),
    loop=LoopConfig(
        steps=1_000_000, ema_decay=0.9999,  # configs/config.yaml
        batch_size=16, accumulation=32,  # configs/config.yaml: 512 in all; batches of 16 fit 80 GB (`didi doctor`)
        validate_every=5000,  # configs/config.yaml
        checkpoint_every=1000,
    ),
)  # fmt: skip

# SEDD teachers: configs/config.yaml and configs/model/small.yaml of
# github.com/louaaron/Score-Entropy-Discrete-Diffusion. Rows are a stream of tokens; the noise is log-linear and ends at
# 1e-3.
_SEDD = PretrainConfig(
    recipe="owt-169m",
    schedule="log-linear-eps",
    data=OWT,
    network=NetworkConfig(hidden_size=768, num_blocks=12, num_heads=12, dropout=0.1, is_time_conditioned=True),
    optimizer=OptimizerConfig(
        learning_rate=3e-4, beta2=0.999, weight_decay=0.0, clip_norm=1.0, warmup_steps=2500, decay="constant"
    ),
    loop=LoopConfig(
        steps=1_300_000, ema_decay=0.9999,
        batch_size=16, accumulation=32,  # 512 in all; batches of 16 are not from a publication
        validate_every=5000, checkpoint_every=1000,
    ),
)  # fmt: skip

PRETRAIN: dict[str, PretrainConfig] = {
    "owt-169m": PretrainConfig(
        recipe="owt-169m",
        data=OWT,
        network=NetworkConfig(hidden_size=768, num_blocks=12, num_heads=12, dropout=0.1),  # Table 3
        optimizer=OptimizerConfig(  # Table 5
            learning_rate=1e-4, warmup_steps=2500, decay="cosine", beta2=0.95, weight_decay=0.05
        ),
        loop=LoopConfig(
            steps=131_000,  # Table 5: 5 epochs of about 8.8 M packed sequences in batches of 336
            batch_size=42, accumulation=8,  # Table 5: 336 (42 a device)
            validate_every=5000, checkpoint_every=1000,
        ),
    ),
    "owt-424m": PretrainConfig(
        recipe="owt-424m",
        data=OWT,
        network=NetworkConfig(hidden_size=1024, num_blocks=24, num_heads=16, dropout=0.1),  # Table 4
        optimizer=OptimizerConfig(  # Table 5; "aligned with the 169M setting", App. F.4
            learning_rate=1e-4, warmup_steps=2500, decay="cosine", beta2=0.95, weight_decay=0.05
        ),
        loop=LoopConfig(
            steps=183_000,  # Table 5: 7 epochs
            batch_size=21, accumulation=16, validate_every=5000, checkpoint_every=1000,
        ),
    ),
    "owt-169m-sedd-absorb": sedd_absorb(_SEDD),
    "owt-169m-sedd-uniform": sedd_uniform(_SEDD),
    "owt-169m-udlm": udlm(_UNIFORM_STATE),  # algo=duo_base
    "owt-169m-duo": duo(
        _UNIFORM_STATE,
        CurriculumConfig(  # scripts/train_owt_duo.sh
            end=500_000, start=0, log10_tau_start=-3.0, log10_tau_end=-3.0, gamma_min=-3.55, gamma_max=-1.85
        ),
    ),
}  # fmt: skip

# Table 5, without warm-up of the learning rate; the rate of the discriminator is that of the released code (row 18 of
# docs/deviations.md).
_OWT_OPTIMIZER = OptimizerConfig(learning_rate=1e-6, decay="linear", weight_decay=0.01)
_OWT_LOOP = LoopConfig(steps=10_000, batch_size=8, validate_every=1000, checkpoint_every=500)  # Table 5

DISTILL: dict[str, DistillConfig] = {
    "owt-169m": DistillConfig(
        recipe="owt-169m",
        data=replace(OWT, tokenizer=None),
        objective=TWO_MOVES,
        discriminator=DiscriminatorSettings(trainable_blocks=4, warmup_steps=1000),  # row 8; App. F.6 for the warm-up
        student_optimizer=_OWT_OPTIMIZER,
        discriminator_optimizer=replace(_OWT_OPTIMIZER, learning_rate=1e-5),
        loop=_OWT_LOOP,
    ),
    "owt-424m": DistillConfig(
        recipe="owt-424m",
        data=replace(OWT, tokenizer=None),
        objective=TWO_MOVES,
        discriminator=DiscriminatorSettings(trainable_blocks=8, warmup_steps=1000),  # "more trainable", Sec. 5.4
        student_optimizer=_OWT_OPTIMIZER,
        discriminator_optimizer=replace(_OWT_OPTIMIZER, learning_rate=1e-5),
        loop=_OWT_LOOP,
    ),
}  # fmt: skip

VARIANTS: dict[tuple[str, str], DistillationConfig] = {
    ("owt-169m", "sdtt"): sdtt(  # the paper: 7 rounds of 10,000 steps of 128 sequences, from 1024 to 8 steps
        DISTILL["owt-169m"],
        LoopConfig(
            steps=70_000, batch_size=16, accumulation=8,  # 128 in all; batches of 16 are not from a publication
            validate_every=5000, checkpoint_every=500, ema_decay=0.9999,
        ),
        rounds=7, first_step=1024, learning_rate=6e-5, warmup_steps=500,
    ),
    ("owt-169m", "dcd"): DcdConfig(  # Sec. 5.2 and scripts/distil_owt.sh of github.com/s-sahoo/duo, as are the defaults
        recipe="owt-169m",
        data=replace(OWT, tokenizer=None),
        loop=LoopConfig(
            steps=50_000, batch_size=16, accumulation=8, ema_decay=0.999, validate_every=1000, checkpoint_every=500
        ),
    ),
    ("owt-169m", "mmd"): mmd_published(DISTILL["owt-169m"]),
    ("owt-169m", "dimo"): dimo.published(DISTILL["owt-169m"]),
    ("owt-424m", "dimo"): dimo.published(DISTILL["owt-424m"]),
}  # fmt: skip
"""Recipes of other methods, by recipe and method; see ``didi.recipes.VARIANTS``."""
