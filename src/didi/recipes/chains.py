"""Recipes for Markov chains, whose likelihood is known: ``markov``, and ``exact``, small enough for enumeration."""

from dataclasses import replace

from didi.data.markov import EXACT, MARKOV
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

_MARKOV_TEACHER = PretrainConfig(
    recipe="markov",
    data=DataConfig(corpus=MARKOV, length=32),
    network=NetworkConfig(hidden_size=64, num_blocks=3, num_heads=4, cond_dim=16),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
    loop=LoopConfig(steps=1800, batch_size=128, validate_every=600, ema_decay=0.999),
)

_EXACT_TEACHER = replace(  # 5^7 = 78,125 states: distributions of samplers are computed by enumeration
    _MARKOV_TEACHER,
    recipe="exact",
    data=DataConfig(corpus=EXACT, length=7),
    loop=LoopConfig(steps=4000, batch_size=256, validate_every=1000, ema_decay=0.999),
)

PRETRAIN: dict[str, PretrainConfig] = {
    teacher.recipe: teacher
    for masked in (_MARKOV_TEACHER, _EXACT_TEACHER)
    for teacher in (
        masked,
        udlm(masked),
        duo(masked, CurriculumConfig(end=masked.loop.steps // 2)),
        sedd_absorb(masked),
        sedd_uniform(masked),
    )
}

DISTILL: dict[str, DistillConfig] = {
    "markov": DistillConfig(
        recipe="markov",
        teacher="markov",
        data=DataConfig(corpus=MARKOV, length=32),
        objective=whole_path(8),
        discriminator=paths_discriminator(warmup_steps=100, steps_per_student_step=2, guidance_steps=300),
        student_optimizer=paths_optimizer(2e-4),
        discriminator_optimizer=paths_optimizer(1e-3),
        loop=LoopConfig(steps=800, batch_size=128, validate_every=400, checkpoint_every=50, ema_decay=0.98),
    ),
    "exact": DistillConfig(  # docs/lab-notes.md, "A reference student"
        recipe="exact",
        teacher="exact",
        data=DataConfig(corpus=EXACT, length=7),
        objective=whole_path(4, reference_steps=10),
        discriminator=paths_discriminator(warmup_steps=100, steps_per_student_step=3, guidance_steps=0),
        student_optimizer=paths_optimizer(1e-3),
        discriminator_optimizer=paths_optimizer(2e-3),
        loop=LoopConfig(steps=400, batch_size=256, validate_every=200, checkpoint_every=50, ema_decay=0.98),
    ),
}  # fmt: skip

# Uniform-state diffusion, in which every move draws all tokens.
DISTILL["exact-udlm"] = replace(DISTILL["exact"], recipe="exact-udlm", teacher="exact-udlm")

VARIANTS: dict[tuple[str, str], DistillationConfig] = {
    ("exact", "sdtt"): sdtt(
        DISTILL["exact"],
        LoopConfig(steps=2080, batch_size=256, validate_every=520, checkpoint_every=130, ema_decay=0.98),
        rounds=4, first_step=64, learning_rate=1e-3, warmup_steps=50,
    ),
    ("markov", "sdtt"): sdtt(
        DISTILL["markov"],
        LoopConfig(steps=1600, batch_size=128, validate_every=400, checkpoint_every=200, ema_decay=0.98),
        rounds=4, first_step=128, learning_rate=5e-4, warmup_steps=50,
    ),
    ("markov", "dcd"): dcd(
        "markov", "markov-duo", DISTILL["markov"].data, num_moves=8, learning_rate=1e-4, steps=3900, batch_size=128
    ),
    ("exact", "dcd"): dcd(
        "exact", "exact-udlm", DISTILL["exact"].data, num_moves=4, learning_rate=3e-5, steps=1950, batch_size=256
    ),
    ("markov", "mmd"): mmd_paths(DISTILL["markov"], 8, "sequence", learning_rate=2e-4, steps=700, batch_size=128),
    ("exact", "mmd"): mmd_paths(DISTILL["exact"], 4, "concatenated", learning_rate=2e-4, steps=790, batch_size=256),
    ("exact-udlm", "mmd"): mmd_paths(
        DISTILL["exact-udlm"], 4, "concatenated", learning_rate=2e-4, steps=560, batch_size=256
    ),
    ("exact", "dimo"): dimo.small(  # 2.0 million sequence passes; docs/dimo.md
        DISTILL["exact"], steps=1950, batch_size=128, rates=(3e-4, 2e-3), initial_state=InitialState(0.5, 0.0)
    ),
    ("markov", "dimo"): dimo.small(
        DISTILL["markov"], steps=1000, batch_size=64, rates=(3e-4, 2e-3), initial_state=InitialState(0.5, 0.01)
    ),
}  # fmt: skip
"""Recipes of other methods, by recipe and method; see ``didi.recipes.VARIANTS``."""
