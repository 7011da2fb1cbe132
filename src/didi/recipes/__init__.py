"""Named runs. Each value that departs from the field's default names its source; "ours" was chosen on validation data.

``owt-169m`` and ``owt-424m`` are the paper's runs (Tables 3-5); ``exact``, ``markov`` and ``tiny-news`` fit a laptop.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, TypeVar

from didi.data.markov import EXACT, MARKOV, WORLDS
from didi.errors import UsageError, suggestion
from didi.methods import METHODS, find_method
from didi.methods.didi_settings import DiscriminatorSettings, DistillConfig, ObjectiveConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DataConfig, DistillationConfig, LoopConfig, NetworkConfig, OptimizerConfig
from didi.models.dit import DiTConfig

OWT = DataConfig(
    corpus="Skylion007/openwebtext",  # App. E.2
    length=1024,  # Table 3
    tokenizer="gpt2",  # App. E.2; 50,257 tokens and the mask
)

# Chosen on validation at equal time, docs/lab-notes.md; for the masked model: its autoregressive twin takes the same.
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

_MARKOV_TEACHER = PretrainConfig(
    recipe="markov",
    data=DataConfig(corpus=MARKOV, length=32),
    network=NetworkConfig(hidden_size=64, num_blocks=3, num_heads=4, cond_dim=16),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
    loop=LoopConfig(steps=1800, batch_size=128, validate_every=600, ema_decay=0.999),
)

PRETRAIN: dict[str, PretrainConfig] = {
    "markov": _MARKOV_TEACHER,
    "exact": replace(  # 5^7 = 78,125 states: the distribution of a sampler is a finite sum
        _MARKOV_TEACHER,
        recipe="exact",
        data=DataConfig(corpus=EXACT, length=7),
        loop=LoopConfig(steps=4000, batch_size=256, validate_every=1000, ema_decay=0.999),
    ),
    "markov-uniform": replace(  # UDLM: uniform-state diffusion, conditioned on its noise level
        _MARKOV_TEACHER,
        recipe="markov-uniform",
        process="uniform",
        network=replace(_MARKOV_TEACHER.network, is_time_conditioned=True),
    ),
    "tiny-news": TINY_NEWS,
    "tiny-news-ar": replace(TINY_NEWS, recipe="tiny-news-ar", model="autoregressive"),
    "prose": PROSE,
    "prose-ar": replace(
        PROSE, recipe="prose-ar", model="autoregressive", network=replace(PROSE.network, dropout=0.1)
    ),
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
}  # fmt: skip

# Of the teachers' tokenizers, the mask included.
VOCABULARIES = {"markov": 33, "exact": 5, "tiny-news": 8192, "prose": 8192, "owt-169m": 50_258, "owt-424m": 50_258}

# The same of tokenizers by name.
TOKENIZERS = {"gpt2": 50_258}

# Our objective: the paper's with the exact variance reductions A and B. The divergence keeps the entropy of samples of
# many steps up; its weight was chosen on ``markov`` (docs/lab-notes.md).
OURS = ObjectiveConfig(
    completions=3,
    advantage="shared-state",
    revealed_only=True,
    divergence_weight=0.35,
    entropy_weight=0.0,
)

# Table 5, for student and discriminator alike; no warm-up.
_OWT_OPTIMIZER = OptimizerConfig(learning_rate=1e-6, decay="linear", weight_decay=0.01)
_OWT_LOOP = LoopConfig(steps=10_000, batch_size=8, validate_every=1000, checkpoint_every=500)  # Table 5

_MARKOV_STUDENT = DistillConfig(
    recipe="markov",
    teacher="markov",
    data=DataConfig(corpus=MARKOV, length=32),
    objective=OURS,
    discriminator=DiscriminatorSettings(warmup_steps=300),
    student_optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=0.0),
    discriminator_optimizer=OptimizerConfig(learning_rate=1e-3),
    loop=LoopConfig(steps=900, batch_size=64, validate_every=300, checkpoint_every=100, ema_decay=0.99),
)

DISTILL: dict[str, DistillConfig] = {
    "markov": _MARKOV_STUDENT,
    "exact": replace(_MARKOV_STUDENT, recipe="exact", teacher="exact", data=DataConfig(corpus=EXACT, length=7)),
    "tiny-news": DistillConfig(
        recipe="tiny-news",
        teacher="tiny-news",
        data=DataConfig(corpus="news", length=128),
        objective=replace(OURS, divergence_weight=0.3, trajectory="path", moves=8),
        discriminator=DiscriminatorSettings(warmup_steps=300, completions=1),
        student_optimizer=OptimizerConfig(learning_rate=4e-4, weight_decay=0.0),
        discriminator_optimizer=OptimizerConfig(learning_rate=1e-3),
        loop=LoopConfig(steps=500, batch_size=24, validate_every=500, checkpoint_every=50, ema_decay=0.99),
    ),
    "prose": DistillConfig(
        recipe="prose",
        teacher="prose",
        data=DataConfig(corpus="prose", length=256),
        objective=replace(OURS, divergence_weight=0.3, trajectory="path", moves=8),
        discriminator=DiscriminatorSettings(warmup_steps=150, completions=1),
        student_optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=0.0),
        discriminator_optimizer=OptimizerConfig(learning_rate=5e-4),
        loop=LoopConfig(
            steps=1500, batch_size=64, validate_every=500, validation_sequences=512, checkpoint_every=250,
            ema_decay=0.99,
        ),
    ),
    "owt-169m": DistillConfig(
        recipe="owt-169m",
        data=replace(OWT, tokenizer=None),
        objective=OURS,
        discriminator=DiscriminatorSettings(trainable_blocks=4, warmup_steps=1000),  # row 8; App. F.6 for the warm-up
        student_optimizer=_OWT_OPTIMIZER,
        discriminator_optimizer=replace(_OWT_OPTIMIZER, learning_rate=1e-5),  # row 18
        loop=_OWT_LOOP,
    ),
    "owt-424m": DistillConfig(
        recipe="owt-424m",
        data=replace(OWT, tokenizer=None),
        objective=OURS,
        discriminator=DiscriminatorSettings(trainable_blocks=8, warmup_steps=1000),  # "more trainable", Sec. 5.4
        student_optimizer=_OWT_OPTIMIZER,
        discriminator_optimizer=replace(_OWT_OPTIMIZER, learning_rate=1e-5),
        loop=_OWT_LOOP,
    ),
}  # fmt: skip


VARIANTS: dict[tuple[str, str], DistillationConfig] = {}
"""Recipes of other methods than DiDi-Instruct, by recipe and method; others take the recipe's data and loop."""


def distillation_recipes(method: str) -> dict[str, DistillationConfig]:
    """The recipes of a distillation method, by name.

    Raises:
        UsageError: no distillation method has that name.
    """
    methods = {name: one for name, one in METHODS.items() if issubclass(one.settings_type, DistillationConfig)}
    if method not in methods:
        raise UsageError(f"a distillation method is one of {', '.join(methods)}; got {method!r}")
    kind = methods[method].settings_type
    found: dict[str, DistillationConfig] = {}
    for name, base in DISTILL.items():
        shared = {"recipe": name, "teacher": base.teacher, "seed": base.seed, "data": base.data, "loop": base.loop}
        found[name] = base if type(base) is kind else VARIANTS.get((name, method)) or kind(**shared)
    return found


def _paper(config: DistillConfig) -> DistillConfig:
    """The paper's text, where it does not contradict itself: docs/deviations.md."""
    return replace(
        config,
        objective=ObjectiveConfig(
            weight="nelbo", importance_weighting=True, advantage="batch", divergence_weight=0.05, entropy_weight=0.0005
        ),
        discriminator=replace(config.discriminator, real_source="teacher-pool", label_smoothing=0.0, guidance_steps=0),
    )


def _released(config: DistillConfig) -> DistillConfig:
    """The authors' released code as far as its settings go; its slips (rows 6, 7, 22) are not repeated."""
    return replace(
        config,
        objective=ObjectiveConfig(
            weight="nelbo", reward_clamp=8.0, advantage="rows", group_size=4,
            divergence_weight=0.05 * 0.01,  # row 15
        ),
        discriminator=replace(
            config.discriminator, real_source="corpus", label_smoothing=0.1, guidance_steps=0
        ),
        loop=replace(config.loop, ema_decay=0.999, ema_ramp=False),  # row 17
    )  # fmt: skip


PRESETS: dict[str, Callable[[DistillConfig], DistillConfig]] = {"paper": _paper, "released": _released}

Config = TypeVar("Config")


def recipes_of(method: str) -> dict[str, Any]:
    """The recipes of any method, by name.

    Raises:
        UsageError: no method has that name.
    """
    kind = find_method(method).settings_type
    if issubclass(kind, DistillationConfig):
        return dict(distillation_recipes(method))
    return {name: one for name, one in PRETRAIN.items() if type(one) is kind}


def num_symbols(data: DataConfig) -> int:
    """Size of the vocabulary of a corpus without its tokenizer at hand, the mask included.

    Raises:
        UsageError: the settings do not say.
    """
    is_world = data.corpus in WORLDS  # recipe and corpus have one name
    size = VOCABULARIES[data.corpus] if is_world else data.vocab_size or TOKENIZERS.get(str(data.tokenizer))
    if size is None:
        raise UsageError(
            f"data.vocab_size, or a data.tokenizer of {', '.join(TOKENIZERS)}, gives the size of the vocabulary; got "
            f"{data.vocab_size} and {data.tokenizer!r}"
        )
    return size


def recipe(recipes: Mapping[str, Config], name: str) -> Config:
    """The recipe called ``name``.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in recipes:
        nearest = suggestion(name, recipes, cutoff=0.0)
        raise UsageError(f"a recipe is one of {', '.join(recipes)}; got {name!r}{nearest}")
    return recipes[name]


def teacher_shape(name: str) -> DiTConfig:
    """Shape of the teacher that a recipe pre-trains, without its tokenizer at hand.

    Raises:
        UsageError: no recipe of a masked-diffusion teacher has that name.
    """
    if name not in VOCABULARIES:
        raise UsageError(f"a shape is that of a recipe, one of {', '.join(VOCABULARIES)}; got {name!r}")
    recipe, vocab_size = PRETRAIN[name], VOCABULARIES[name]
    return DiTConfig(vocab_size=vocab_size, mask_id=vocab_size - 1, length=recipe.data.length, **asdict(recipe.network))


def preset(config: DistillConfig, name: str) -> DistillConfig:
    """``config`` with objective and discriminator switched to those of ``paper`` or ``released``.

    Raises:
        UsageError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise UsageError(f"a preset is one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name](config)
