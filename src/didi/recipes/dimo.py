"""Di[M]O on each world: the published settings where a world has no reason for others.

Rates are larger than the published 1e-5 where networks are small and runs short.
"""

from dataclasses import replace

from didi.methods.didi_settings import DistillConfig
from didi.methods.dimo import DimoConfig, dimo_optimizer
from didi.methods.settings import LoopConfig
from didi.models.initial_state import InitialState


def dimo(
    base: DistillConfig,
    loop: LoopConfig,
    *,
    learning_rate: float,
    auxiliary_rate: float,
    initial_state: InitialState | None = None,
    reverse_weight: float = 0.0,
) -> DimoConfig:
    """Di[M]O with the teacher and the data of a recipe of DiDi-Instruct."""
    config = DimoConfig(
        recipe=base.recipe,
        teacher=base.teacher,
        data=base.data,
        reverse_weight=reverse_weight,
        student_optimizer=dimo_optimizer(learning_rate),
        auxiliary_optimizer=dimo_optimizer(auxiliary_rate),
        loop=loop,
    )
    return config if initial_state is None else replace(config, initial_state=initial_state)
