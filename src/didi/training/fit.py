"""The length of a run that fits a time: a few steps are timed, then the length is fixed, so that runs resume."""

import gc
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.methods.settings import RunConfig
from didi.training.trainer import make_trainer
from didi.world import wait_for, world

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
    if not minutes > 0:
        raise UsageError(f"max-minutes is positive; got {minutes}")
    if not settings.loop.steps:
        raise UsageError("max-minutes sets loop.steps, of which this run has 0: leave it out, or raise loop.steps")
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(world().joined_items([folder])[0])  # the main process keeps there what all read
        trainer = make_trainer(settings, replace(inputs, folder=shared))
        num = trainer.num_steps
        places = [number * (num - 1) // (SAMPLED_STEPS - 1) for number in range(SAMPLED_STEPS)]
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
        seconds, validation = world().mean(torch.tensor([seconds, validation], device=inputs.device)).tolist()
        world().wait()
    del trainer
    gc.collect()  # trainer and method refer to each other; the run's own networks need the memory
    budget = minutes * 60 * MARGIN
    low, high = 0, settings.loop.steps
    while low < high:  # the most steps whose time is within the budget
        middle = (low + high + 1) // 2
        steps = settings.limited(middle).num_steps
        taken = steps * seconds + (1 + steps // settings.loop.validate_every) * validation
        low, high = (middle, high) if taken <= budget else (low, middle - 1)
    if low < 1:
        raise UsageError(
            f"max-minutes fits one step or more; a step takes {seconds:.1f} s and a validation {validation:.1f} s, "
            f"got {minutes:g} minutes"
        )
    return settings.limited(low)
