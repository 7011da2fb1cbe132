"""Comparisons of distillation methods: equal budgets, settings found with as many trials for each method."""

from dataclasses import replace

from didi.methods.didi_settings import DistillConfig
from didi.methods.dimo import DimoConfig
from didi.methods.mmd_settings import MmdConfig, MmdObjective
from didi.methods.objective_settings import ObjectiveConfig
from didi.methods.settings import DistillationConfig
from didi.models.initial_state import InitialState
from didi.recipes.worlds import DISTILL, VARIANTS


def _didi(base: DistillConfig, objective: ObjectiveConfig, *, warmup_steps: int, steps: int) -> DistillConfig:
    """DiDi-Instruct with another objective, warm-up of the discriminator and length."""
    discriminator = replace(base.discriminator, warmup_steps=warmup_steps)
    loop = replace(base.loop, steps=steps, validate_every=steps)
    return replace(base, objective=objective, discriminator=discriminator, loop=loop)


def _mmd(base: DistillationConfig, objective: MmdObjective, *, rate: float, steps: int) -> MmdConfig:
    """MMD with another objective, rate and length; as many samples in a step as ``base`` has."""
    assert isinstance(base, MmdConfig)
    batch_size = base.loop.batch_size // objective.completions
    loop = replace(base.loop, steps=steps, validate_every=steps, batch_size=batch_size)
    return replace(base, objective=objective, optimizer=replace(base.optimizer, learning_rate=rate), loop=loop)


def _dimo(base: DistillationConfig, initial_state: InitialState) -> DimoConfig:
    """Di[M]O from another initial state."""
    assert isinstance(base, DimoConfig)
    return replace(base, initial_state=initial_state)


_EXACT, _PATHS, _EXACT_MMD = DISTILL["exact"], DISTILL["exact"].objective, VARIANTS["exact", "mmd"]
assert isinstance(_EXACT_MMD, MmdConfig)
_NARROW = replace(_EXACT_MMD.objective, bandwidths=(0.25,))

COMPARED: dict[str, dict[str, DistillationConfig]] = {
    "exact": {  # 2.0 million sequence passes each; benchmarks/method_search/exact.yaml
        "didi": _didi(_EXACT, _PATHS, warmup_steps=40, steps=181),
        "didi-1": _didi(_EXACT, replace(_PATHS, moves=1, initial_mask_ratio=0.5), warmup_steps=40, steps=268),
        "didi-2": _didi(_EXACT, replace(_PATHS, moves=2), warmup_steps=40, steps=268),
        "didi-8": _didi(_EXACT, replace(_PATHS, moves=8), warmup_steps=40, steps=134),
        "didi-4-8": _didi(_EXACT, replace(_PATHS, moves=8, budgets=(4, 8)), warmup_steps=40, steps=155),
        "mmd": _mmd(_EXACT_MMD, _NARROW, rate=1e-4, steps=798),
        "mmd-8": _mmd(_EXACT_MMD, replace(_NARROW, moves=8), rate=1e-4, steps=529),
        "mmd-published": _mmd(_EXACT_MMD, MmdObjective(), rate=1e-4, steps=5208),
        "dimo": _dimo(VARIANTS["exact", "dimo"], InitialState(0.3, 0.0)),
    },
}
"""See ``didi.recipes.COMPARED``; a number after a method is that of the moves that a student is trained for."""
