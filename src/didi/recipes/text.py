"""Recipes for small text: ``tiny-news`` runs on a laptop, ``prose`` on a GPU, or on a CPU with fewer steps."""

from dataclasses import replace

from didi.methods.didi_settings import DistillConfig
from didi.methods.duo import CurriculumConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DataConfig, DistillationConfig, LoopConfig, NetworkConfig, OptimizerConfig
from didi.models.initial_state import InitialState
from didi.recipes import dimo
from didi.recipes.dcd import dcd
from didi.recipes.mmd import mmd_paths
from didi.recipes.objectives import paths_discriminator, paths_optimizer, whole_path
from didi.recipes.score import sedd_absorb, sedd_uniform
from didi.recipes.sdtt import sdtt
from didi.recipes.uniform_state import duo, udlm

# Chosen on validation data at equal time for the masked model, docs/lab-notes.md; the autoregressive baseline has the
# same settings.
TINY_NEWS = PretrainConfig(
    recipe="tiny-news",
    weight="constant",
    data=DataConfig(corpus="news", length=128, vocab_size=8192),
    network=NetworkConfig(hidden_size=128, num_blocks=6, num_heads=4, cond_dim=16, conv_radius=2),
    optimizer=OptimizerConfig(
        method="muon", learning_rate=8e-3, muon_rate_scale=2.5, warmup_steps=100, beta2=0.98, weight_decay=0.05
    ),
    loop=LoopConfig(
        steps=9600, batch_size=16, log_every=50, validate_every=400, validation_sequences=512, checkpoint_every=100,
        ema_decay=0.999,
    ),
)  # fmt: skip

# For a GPU: about 12.9 M parameters, so that teacher, student and discriminator in bfloat16 take at most 75 MB.
PROSE = PretrainConfig(
    recipe="prose",
    weight="constant",
    data=DataConfig(corpus="prose", length=256, vocab_size=8192),
    network=NetworkConfig(hidden_size=320, num_blocks=6, num_heads=5, cond_dim=16, conv_radius=2),
    optimizer=OptimizerConfig(
        method="muon", learning_rate=3e-3, muon_rate_scale=2.5, warmup_steps=200, beta2=0.98, weight_decay=0.05
    ),
    loop=LoopConfig(
        steps=20_000, batch_size=256, log_every=100, validate_every=2000, validation_sequences=512,
        checkpoint_every=2000, ema_decay=0.999, compile=True,
    ),
)  # fmt: skip

PRETRAIN: dict[str, PretrainConfig] = {
    "tiny-news": TINY_NEWS,
    "tiny-news-ar": replace(TINY_NEWS, recipe="tiny-news-ar", model="autoregressive"),
    "tiny-news-udlm": udlm(TINY_NEWS),
    "tiny-news-duo": duo(TINY_NEWS, CurriculumConfig(end=TINY_NEWS.loop.steps // 2)),
    "tiny-news-sedd-absorb": sedd_absorb(TINY_NEWS),
    "tiny-news-sedd-uniform": sedd_uniform(TINY_NEWS),
    "prose": PROSE,
    "prose-ar": replace(
        PROSE, recipe="prose-ar", model="autoregressive", network=replace(PROSE.network, dropout=0.1)
    ),
}  # fmt: skip

DISTILL: dict[str, DistillConfig] = {
    "tiny-news": DistillConfig(
        recipe="tiny-news",
        teacher="tiny-news",
        data=DataConfig(corpus="news", length=128),
        objective=whole_path(8),
        discriminator=paths_discriminator(warmup_steps=60, steps_per_student_step=2, guidance_steps=150),
        student_optimizer=paths_optimizer(3e-4),
        discriminator_optimizer=paths_optimizer(1e-3),
        loop=LoopConfig(steps=500, batch_size=48, validate_every=250, checkpoint_every=25, ema_decay=0.98),
    ),
    "prose": DistillConfig(
        recipe="prose",
        teacher="prose",
        data=DataConfig(corpus="prose", length=256),
        objective=whole_path(8),
        discriminator=paths_discriminator(warmup_steps=60, steps_per_student_step=2, guidance_steps=150),
        student_optimizer=paths_optimizer(3e-4),
        discriminator_optimizer=paths_optimizer(1e-3),
        loop=LoopConfig(
            steps=500, batch_size=48, validate_every=250, validation_sequences=512, checkpoint_every=25, ema_decay=0.98,
        ),
    ),
}  # fmt: skip

VARIANTS: dict[tuple[str, str], DistillationConfig] = {
    ("tiny-news", "sdtt"): sdtt(
        DISTILL["tiny-news"],
        LoopConfig(steps=1500, batch_size=32, validate_every=500, checkpoint_every=50, ema_decay=0.98),
        rounds=5, first_step=256, learning_rate=3e-4, warmup_steps=50,
    ),
    ("tiny-news", "dcd"): dcd(
        "tiny-news", "", DISTILL["tiny-news"].data, num_moves=8, learning_rate=1e-4, steps=2000, batch_size=64
    ),
    ("tiny-news", "mmd"): mmd_paths(DISTILL["tiny-news"], 8, "token", learning_rate=3e-4, steps=500, batch_size=48),
    ("tiny-news", "dimo"): dimo.small(
        DISTILL["tiny-news"], steps=1000, batch_size=32, rates=(1e-4, 5e-4), initial_state=InitialState(0.5, 0.01)
    ),
}  # fmt: skip
"""Recipes of other methods, by recipe and method; see ``didi.recipes.VARIANTS``."""
