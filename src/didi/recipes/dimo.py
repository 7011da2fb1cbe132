"""Recipes of Di[M]O (Zhu et al. 2025); "public" is github.com/yuanzhi-zhu/DiMO, configs/DIMO_MaskGit.yaml."""

from didi.methods.didi_settings import DistillConfig
from didi.methods.dimo import DimoConfig
from didi.methods.settings import LoopConfig, OptimizerConfig
from didi.models.initial_state import InitialState

PUBLIC_LOOP = LoopConfig(
    steps=50_000, ema_decay=0.9999,  # public: max_train_steps, ema_decay with its ramp
    batch_size=8, accumulation=8,  # public: 64 in all (scripts/launch_DIMO_MaskGit.sh), in other batches
    validate_every=1000, checkpoint_every=500,
)  # fmt: skip


def published(base: DistillConfig) -> DimoConfig:
    """The public settings, defaults of ``DimoConfig``, with the data of a recipe of DiDi-Instruct."""
    return DimoConfig(recipe=base.recipe, teacher=base.teacher, data=base.data, loop=PUBLIC_LOOP)


def small(
    base: DistillConfig,
    *,
    steps: int,
    batch_size: int,
    rates: tuple[float, float],
    initial_state: InitialState,
) -> DimoConfig:
    """A short run of a small network, with higher learning rates than published, which fall to 0.

    Args:
        base: recipe with the teacher and the data.
        steps: number of updates of the student.
        batch_size: number of sequences in a batch.
        rates: learning rates of student and auxiliary model; the second should be several times the first, so that the
            auxiliary model follows the student.
        initial_state: distribution of the initial state; its noise should be small compared with the embeddings, whose
            root mean square is about 0.1 here.
    """
    student, auxiliary = (
        OptimizerConfig(learning_rate=rate, warmup_steps=10, beta2=0.99, weight_decay=0.0) for rate in rates
    )
    return DimoConfig(
        recipe=base.recipe,
        teacher=base.teacher,
        data=base.data,
        initial_state=initial_state,
        student_optimizer=student,
        auxiliary_optimizer=auxiliary,
        loop=LoopConfig(
            steps=steps, batch_size=batch_size, validate_every=steps // 2, checkpoint_every=50, ema_decay=0.99
        ),
    )
