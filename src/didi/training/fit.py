"""Choose ``loop.steps`` for a given time or number of passes, from a few trial steps before the run starts."""

import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.methods.settings import RunConfig
from didi.process_group import process_group, synchronize
from didi.training.trainer import Trainer, make_trainer

SAMPLED_STEPS = 8
MARGIN = 0.95  # planned fraction of the time; the rest is for checkpoints and variations in speed


def fitted_to_minutes(settings: RunConfig, inputs: Inputs, minutes: float) -> RunConfig:
    """``settings`` with ``loop.steps`` such that the run takes about ``minutes``; see ``RunConfig.limited``.

    Steps spread over the whole run are timed on networks that are discarded, after warm-up steps.

    Args:
        settings: settings of the run; their ``loop.steps`` is the upper bound.
        inputs: inputs of the method; the run's folder is not used.
        minutes: wall-clock time of steps and validations on this machine.

    Raises:
        UsageError: ``minutes`` is too short for one step, or ``loop.steps`` is 0.
    """
    _check("max-minutes", minutes, settings)
    with _trial(settings, inputs) as trainer:
        sampled_steps = _spread(trainer.num_steps, SAMPLED_STEPS)
        # Warm-up: the first step of each kind initialises libraries and compiles.
        kinds = {tuple(update.network for update in trainer.method.updates(step)): step for step in sampled_steps}
        for step in kinds.values():
            trainer.step(step)
        synchronize(inputs.device)
        begin = time.perf_counter()
        for step in sampled_steps:
            trainer.step(step)
        synchronize(inputs.device)
        seconds = (time.perf_counter() - begin) / SAMPLED_STEPS
        begin = time.perf_counter()
        trainer.validate()
        validation = time.perf_counter() - begin
        # All processes must choose the same number of steps.
        seconds, validation = process_group().mean(torch.tensor([seconds, validation], device=inputs.device)).tolist()
    budget = minutes * 60 * MARGIN

    def planned_seconds(steps: int) -> float:
        num_steps = settings.limited(steps).num_steps
        return num_steps * seconds + (1 + num_steps // settings.loop.validate_every) * validation

    steps = _max_steps(settings, budget, planned_seconds)
    if steps < 1:
        raise UsageError(
            f"max-minutes fits one step or more; a step takes {seconds:.1f} s and a validation {validation:.1f} s, "
            f"got {minutes:g} minutes"
        )
    return settings.limited(steps)


def fitted_to_passes(settings: RunConfig, inputs: Inputs, passes: float) -> RunConfig:
    """``settings`` with ``loop.steps`` such that the run has about ``passes`` sequence passes.

    The number of passes does not depend on the machine, and can be the budget of a comparison of methods. Passes of
    validations do not count.

    Args:
        settings: settings of the run; their ``loop.steps`` is the upper bound.
        inputs: inputs of the method; the run's folder is not used.
        passes: number of sequence passes, see ``training.passes``.

    Raises:
        UsageError: ``passes`` is too small for one step, ``loop.steps`` is 0, or the run compiles its blocks, which
            disables the counter.
    """
    _check("max-passes", passes, settings)
    if settings.loop.compile:
        raise UsageError("max-passes cannot be combined with loop.compile, which bypasses the counter: leave one out")
    with _trial(settings, inputs) as trainer:
        main_passes = _mean_passes(trainer, is_main=True)
        other_passes = _mean_passes(trainer, is_main=False)

    def total_passes(steps: int) -> float:
        return steps * main_passes + (settings.limited(steps).num_steps - steps) * other_passes

    steps = _max_steps(settings, passes, total_passes)
    if steps < 1:
        raise UsageError(
            f"max-passes fits one step or more; the shortest run has {total_passes(1):.0f} passes, got {passes:g}"
        )
    return settings.limited(steps)


def _check(name: str, bound: float, settings: RunConfig) -> None:
    if not bound > 0:
        raise UsageError(f"{name} is positive; got {bound}")
    if not settings.loop.steps:
        raise UsageError(f"{name} limits loop.steps, which is 0: leave {name} out, or raise loop.steps")


@contextlib.contextmanager
def _trial(settings: RunConfig, inputs: Inputs) -> Iterator[Trainer]:
    """A trainer for trial steps, whose networks are discarded at the end of the context."""
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(process_group().all_gather_items([folder])[0])  # all processes use the main process's folder
        trainer = make_trainer(settings, replace(inputs, folder=shared))
        yield trainer
        process_group().barrier()
    del trainer
    gc.collect()  # trainer and method are a reference cycle; the run needs the memory


def _spread(num: int, count: int) -> list[int]:
    """``count`` integers spread evenly over [0, num)."""
    return [index * (num - 1) // max(1, count - 1) for index in range(count)]


def _mean_passes(trainer: Trainer, *, is_main: bool) -> float:
    """Mean passes of steps with (``is_main``) or without an update of the averaged network; 0 without such steps."""
    main = trainer.method.averaged_network
    steps = [
        step
        for step in range(trainer.num_steps)
        if any(update.network == main for update in trainer.method.updates(step)) == is_main
    ]
    indices = sorted({*_spread(len(steps), SAMPLED_STEPS)}) if steps else []
    return sum(float(trainer.step(steps[index])["sequence_passes"]) for index in indices) / max(1, len(indices))


def _max_steps(settings: RunConfig, budget: float, cost: Callable[[int], float]) -> int:
    """The largest number of steps, at most ``loop.steps``, with a cost within the budget; 0 if there is none."""
    low, high = 0, settings.loop.steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle - 1)
    return low
