"""Settings for comparisons of distillation methods, from equally many trials per method at equal budgets."""

from dataclasses import replace

from didi.methods.dcd import DcdConfig
from didi.methods.didi_settings import DistillConfig
from didi.methods.dimo import DimoConfig
from didi.methods.mmd_settings import MmdConfig, MmdObjective
from didi.methods.objective_settings import ObjectiveConfig
from didi.methods.sdtt import SdttConfig
from didi.methods.settings import DistillationConfig, LoopConfig
from didi.models.initial_state import InitialState
from didi.recipes import text
from didi.recipes.chains import DISTILL, VARIANTS


def _loop(base: DistillationConfig, steps: int) -> LoopConfig:
    """The loop of a recipe with another number of steps, and validation at the end only."""
    return replace(base.loop, steps=steps, validate_every=steps)


def _didi(
    base: DistillConfig, objective: ObjectiveConfig, *, steps: int, warmup_steps: int = 40, rate: float | None = None
) -> DistillConfig:
    """DiDi-Instruct with another objective, warm-up, learning rate and length, without guidance steps.

    Args:
        base: a recipe.
        objective: objective of the student.
        steps: number of updates of the student.
        warmup_steps: number of warm-up steps of the discriminator.
        rate: learning rate of the student; None for that of the recipe.
    """
    discriminator = replace(base.discriminator, warmup_steps=warmup_steps, guidance_steps=0)
    optimizer = base.student_optimizer if rate is None else replace(base.student_optimizer, learning_rate=rate)
    return replace(
        base,
        objective=objective,
        discriminator=discriminator,
        student_optimizer=optimizer,
        loop=_loop(base, steps),
    )


def _mmd(base: DistillationConfig, objective: MmdObjective, *, rate: float, steps: int) -> MmdConfig:
    """MMD with another objective, learning rate and length; steps have as many samples as those of ``base``."""
    assert isinstance(base, MmdConfig)
    batch_size = base.loop.batch_size // objective.completions
    loop = replace(_loop(base, steps), batch_size=batch_size)
    return replace(base, objective=objective, optimizer=replace(base.optimizer, learning_rate=rate), loop=loop)


_EXACT, _PATHS, _EXACT_MMD = DISTILL["exact"], DISTILL["exact"].objective, VARIANTS["exact", "mmd"]
_LATENT = replace(_PATHS, latent_codes=16)
_EXACT_DIMO = VARIANTS["exact", "dimo"]
assert isinstance(_EXACT_MMD, MmdConfig)
assert isinstance(_EXACT_DIMO, DimoConfig)
_NARROW = replace(_EXACT_MMD.objective, bandwidths=(0.25,))

_MARKOV, _MARKOV_MMD = DISTILL["markov"], VARIANTS["markov", "mmd"]
_MARKOV_PATHS = replace(_MARKOV.objective, reference_steps=10)
_MARKOV_SDTT, _MARKOV_DCD = VARIANTS["markov", "sdtt"], VARIANTS["markov", "dcd"]
_MARKOV_DIMO = VARIANTS["markov", "dimo"]
assert isinstance(_MARKOV_MMD, MmdConfig)
assert isinstance(_MARKOV_SDTT, SdttConfig)
assert isinstance(_MARKOV_DCD, DcdConfig)

_TEXT = replace(text.DISTILL["tiny-news"], loop=replace(text.DISTILL["tiny-news"].loop, batch_size=16))
_TEXT_SDTT, _TEXT_DCD, _TEXT_MMD, _TEXT_DIMO = (
    text.VARIANTS["tiny-news", method] for method in ("sdtt", "dcd", "mmd", "dimo")
)
assert isinstance(_TEXT_MMD, MmdConfig)


def _text_didi(objective: ObjectiveConfig, *, steps: int) -> DistillConfig:
    return _didi(_TEXT, objective, warmup_steps=10, rate=6e-4, steps=steps)


COMPARED: dict[str, dict[str, DistillationConfig]] = {
    "exact": {  # 2.0 million sequence passes each; benchmarks/method_search/exact.yaml
        "didi": _didi(_EXACT, _PATHS, steps=181),
        "didi-1": _didi(_EXACT, replace(_PATHS, moves=1, initial_mask_ratio=0.5), steps=268),
        "didi-2": _didi(_EXACT, replace(_PATHS, moves=2), steps=268),
        "didi-8": _didi(_EXACT, replace(_PATHS, moves=8), steps=134),
        "didi-latent": _didi(_EXACT, _LATENT, steps=154),
        "didi-latent-2": _didi(_EXACT, replace(_LATENT, moves=2), steps=208),
        "didi-4-8": _didi(_EXACT, replace(_PATHS, moves=8, budgets=(4, 8)), steps=155),
        "mmd": _mmd(_EXACT_MMD, _NARROW, rate=1e-4, steps=798),
        "mmd-8": _mmd(_EXACT_MMD, replace(_NARROW, moves=8), rate=1e-4, steps=529),
        "mmd-published": _mmd(_EXACT_MMD, MmdObjective(), rate=1e-4, steps=5208),
        "dimo": replace(_EXACT_DIMO, initial_state=InitialState(0.3, 0.0)),
    },
    "markov": {  # 0.6 million sequence passes each; benchmarks/method_search/markov.yaml
        "didi": _didi(_MARKOV, _MARKOV_PATHS, rate=6e-4, steps=67),
        "didi-1": _didi(_MARKOV, replace(_MARKOV_PATHS, moves=1, initial_mask_ratio=0.5), rate=6e-4, steps=217),
        "didi-2": _didi(_MARKOV, replace(_MARKOV_PATHS, moves=2), rate=6e-4, steps=216),
        "didi-4": _didi(_MARKOV, replace(_MARKOV_PATHS, moves=4), rate=6e-4, steps=127),
        "sdtt": replace(_MARKOV_SDTT, rounds=5, loop=_loop(_MARKOV_SDTT, 1052)),
        "dcd": replace(
            _MARKOV_DCD,
            optimizer=replace(_MARKOV_DCD.optimizer, learning_rate=3e-5),
            loop=_loop(_MARKOV_DCD, 1171),
        ),
        "dimo": replace(_MARKOV_DIMO, loop=_loop(_MARKOV_DIMO, 1171)),
        "mmd": _mmd(_MARKOV_MMD, replace(_MARKOV_MMD.objective, bandwidths=(0.25,)), rate=1e-4, steps=206),
    },
    "tiny-news": {  # 48 thousand sequence passes each; benchmarks/method_search/tiny-news.yaml
        "didi": _text_didi(_TEXT.objective, steps=66),
        "didi-1": _text_didi(replace(_TEXT.objective, moves=1, initial_mask_ratio=0.5), steps=168),
        "didi-2": _text_didi(replace(_TEXT.objective, moves=2), steps=165),
        "didi-4": _text_didi(replace(_TEXT.objective, moves=4), steps=111),
        "sdtt": replace(_TEXT_SDTT, loop=_loop(_TEXT_SDTT, 317)),
        "dcd": replace(_TEXT_DCD, loop=_loop(_TEXT_DCD, 187)),
        "dimo": replace(_TEXT_DIMO, loop=_loop(_TEXT_DIMO, 187)),
        "mmd": _mmd(
            replace(_TEXT_MMD, loop=replace(_TEXT_MMD.loop, batch_size=16)),
            replace(_TEXT_MMD.objective, bandwidths=(0.25,)),
            rate=1e-4,
            steps=129,
        ),
    },
}
"""See ``didi.recipes.COMPARED``; a number in a name is the number of moves that the student is trained for."""
