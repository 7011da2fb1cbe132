"""The length of a run that fits a time or a number of passes: fixed after a few steps, so that runs resume."""

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
from didi.process_group import process_group, wait_for
from didi.training.trainer import Trainer, make_trainer

SAMPLED_STEPS = 8
MARGIN = 0.95  # of the time is planned, since checkpoints and the machine are not


def fitted(settings: RunConfig, inputs: Inputs, minutes: float) -> RunConfig:
    """``settings`` with ``loop.steps`` such that the run takes about ``minutes``; further phases are cut to as many.

    Steps spread over the whole run are timed on networks that are thrown away, after some that warm up.

    Args:
        settings: of the run; its own length is the longest that is considered.
        inputs: of its method; the run's folder is not used.
        minutes: wall-clock time of steps and validations on this machine.

    Raises:
        UsageError: not even one step fits, or the settings have no such steps.
    """
    _check("max-minutes", minutes, settings)
    with _trial(settings, inputs) as trainer:
        places = _spread(trainer.num_steps, SAMPLED_STEPS)
        # The first step of each kind initialises libraries and compiles.
        for place in {tuple(one.network for one in trainer.method.updates(place)): place for place in places}.values():
            trainer.step(place)
        wait_for(inputs.device)
        begin = time.perf_counter()
        for place in places:
            trainer.step(place)
        wait_for(inputs.device)
        seconds = (time.perf_counter() - begin) / SAMPLED_STEPS
        begin = time.perf_counter()
        trainer.validate()
        validation = time.perf_counter() - begin
        # All processes plan with the same times.
        seconds, validation = process_group().mean(torch.tensor([seconds, validation], device=inputs.device)).tolist()
    budget = minutes * 60 * MARGIN

    def planned(steps: int) -> float:
        taken = settings.limited(steps).num_steps
        return taken * seconds + (1 + taken // settings.loop.validate_every) * validation

    steps = _most_steps(settings, budget, planned)
    if steps < 1:
        raise UsageError(
            f"max-minutes fits one step or more; a step takes {seconds:.1f} s and a validation {validation:.1f} s, "
            f"got {minutes:g} minutes"
        )
    return settings.limited(steps)


def fitted_to_passes(settings: RunConfig, inputs: Inputs, passes: float) -> RunConfig:
    """``settings`` with ``loop.steps`` such that about so many sequences pass through the networks (``passes``).

    They do not depend on the machine: a budget to compare methods. Those of validations do not count.

    Args:
        settings: of the run; its own length is the longest that is considered.
        inputs: of its method; the run's folder is not used.
        passes: sequences through a network, of which one that keeps a gradient counts three times.

    Raises:
        UsageError: not even one step fits, the settings have no such steps, or the run compiles its blocks, whose
            passes are not counted.
    """
    _check("max-passes", passes, settings)
    if settings.loop.compile:
        raise UsageError("max-passes goes without loop.compile, whose passes are not counted: leave one of them out")
    with _trial(settings, inputs) as trainer:
        of_main = _mean_passes(trainer, is_main=True)
        of_other = _mean_passes(trainer, is_main=False)

    def total(steps: int) -> float:
        return steps * of_main + (settings.limited(steps).num_steps - steps) * of_other

    steps = _most_steps(settings, passes, total)
    if steps < 1:
        raise UsageError(
            f"max-passes fits one step or more; the shortest run has {total(1):.0f} passes, got {passes:g}"
        )
    return settings.limited(steps)


def _check(name: str, bound: float, settings: RunConfig) -> None:
    if not bound > 0:
        raise UsageError(f"{name} is positive; got {bound}")
    if not settings.loop.steps:
        raise UsageError(f"{name} sets loop.steps, of which this run has 0: leave it out, or raise loop.steps")


@contextlib.contextmanager
def _trial(settings: RunConfig, inputs: Inputs) -> Iterator[Trainer]:
    """A trainer of networks that are thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(process_group().all_gather_items([folder])[0])  # the main process keeps there what all read
        trainer = make_trainer(settings, replace(inputs, folder=shared))
        yield trainer
        process_group().barrier()
    del trainer
    gc.collect()  # trainer and method refer to each other; the run's own networks need the memory


def _spread(num: int, count: int) -> list[int]:
    """``count`` numbers spread over [0, num)."""
    return [place * (num - 1) // max(1, count - 1) for place in range(count)]


def _mean_passes(trainer: Trainer, *, is_main: bool) -> float:
    """Mean passes of the steps that update the network of the result, or of all others; 0 where there are none."""
    main = trainer.method.averaged_network
    steps = [
        step
        for step in range(trainer.num_steps)
        if any(one.network == main for one in trainer.method.updates(step)) == is_main
    ]
    places = sorted({*_spread(len(steps), SAMPLED_STEPS)}) if steps else []
    return sum(float(trainer.step(steps[place])["sequence_passes"]) for place in places) / max(1, len(places))


def _most_steps(settings: RunConfig, budget: float, cost: Callable[[int], float]) -> int:
    """The most steps, up to those of the settings, whose cost is within the budget; 0 for none."""
    low, high = 0, settings.loop.steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle - 1)
    return low
