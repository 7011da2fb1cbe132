"""What a training run needs: the real steps of its method without their arithmetic, at two batch sizes.

A dry run builds the trainer on networks without values (``shapes_only``), makes steps of every phase of the method, and
counts the bytes that are alive (``live_memory``) and the floating-point operations. It knows no method: what the method
does is run. Each stretch of a step (up to an optimizer's step, that step, and what is left) is extrapolated linearly in
the batch size; the greatest of them is the peak.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from didi.errors import UsageError
from didi.methods import method_of
from didi.methods.base import Inputs, Method
from didi.methods.settings import RunConfig
from didi.process_group import fake_process_group
from didi.sampling.draw_check import no_draw_checks
from didi.training.live_memory import LiveMemory
from didi.training.shapes_only import ShapesOnly
from didi.training.trainer import Trainer

MICRO_BATCHES = 2
"""Of an update in a dry run, at most: the third needs what the second needs."""
CPU = torch.device("cpu")

InputsOf = Callable[[Path], Inputs]
"""Makes the inputs of the method, on the CPU, from a folder of the run; called where networks get no values."""


@dataclass(frozen=True)
class DryRun:
    """One dry run, on one device.

    Attributes:
        batch_size: sequences of all devices.
        parameters: numbers stored as weights of all networks, counted once where they are shared.
        trained: those that a gradient changes.
        weights: bytes of parameters and buffers of all networks but the average.
        average: bytes that the averaged network adds.
        moments: bytes of the optimizers' state.
        gradients: most bytes of gradients at the step of an optimizer.
        stretches: for each step, the most bytes that were alive in each of its stretches.
        flops: operations of a step, the mean over the steps of the longest phase, all devices.
        total_flops: those of the whole run.
    """

    batch_size: int
    parameters: int
    trained: int
    weights: int
    average: int
    moments: int
    gradients: int
    stretches: Sequence[Sequence[int]]
    flops: float
    total_flops: float

    @property
    def peak(self) -> int:
        """Most bytes that were alive at one time."""
        return max(map(max, self.stretches))


@dataclass(frozen=True)
class Estimate:
    """What a run needs as a function of its batch size, from two dry runs."""

    small: DryRun
    large: DryRun

    def peak(self, batch_size: int) -> float:
        """Bytes on one device at the peak of a step, extrapolated linearly in the batch size of all devices."""
        share = (batch_size - self.small.batch_size) / (self.large.batch_size - self.small.batch_size)
        pairs = zip(self.small.stretches, self.large.stretches, strict=True)
        return max(
            low + share * max(0, high - low)
            for of_small, of_large in pairs
            for low, high in zip(of_small, of_large, strict=True)
        )

    def of(self, batch_size: int) -> DryRun:
        """The dry run at that batch size, or the larger one."""
        return self.small if self.small.batch_size == batch_size else self.large

    def largest_batch(self, memory: float, multiple_of: int = 1) -> int:
        """The largest batch size whose peak is within ``memory`` bytes; 0 if there is none."""
        low, high = 0, 1
        while self.peak(high * multiple_of) <= memory:
            low, high = high, 2 * high
            if high > 2**20:
                break
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.peak(middle * multiple_of) <= memory else (low, middle)
        return low * multiple_of


def estimate(
    settings: RunConfig, inputs_of: InputsOf, *, num_processes: int = 1, batch_sizes: tuple[int, int] | None = None
) -> Estimate:
    """Dry runs at two batch sizes.

    Args:
        settings: of the run; ``loop.precision`` names the precision of the device that is meant.
        inputs_of: makes the inputs of the method.
        num_processes: devices that share the batch, each with a process; this is the first of them.
        batch_sizes: of all devices; by default that of ``settings`` and half of it, or twice where half is not allowed.

    Raises:
        UsageError: the settings fit no batch of these sizes.
    """
    if batch_sizes is not None:
        small, large = (dry_run(settings, inputs_of, size, num_processes=num_processes) for size in sorted(batch_sizes))
        return Estimate(small, large)
    size = settings.loop.batch_size
    base = dry_run(settings, inputs_of, size, num_processes=num_processes)
    if size % (2 * num_processes) == 0:
        try:
            return Estimate(dry_run(settings, inputs_of, size // 2, num_processes=num_processes), base)
        except UsageError:  # baselines of groups need a number of rows
            pass
    return Estimate(base, dry_run(settings, inputs_of, 2 * size, num_processes=num_processes))


def dry_run(settings: RunConfig, inputs_of: InputsOf, batch_size: int, *, num_processes: int = 1) -> DryRun:
    """Steps of every phase at one batch size; see ``estimate``."""
    loop = settings.loop
    accumulation = min(MICRO_BATCHES, loop.accumulation)
    cut = replace(loop, batch_size=batch_size, accumulation=accumulation)
    settings = replace(settings.for_dry_run(), loop=cut)
    around = fake_process_group(num_processes) if num_processes > 1 else nullcontext()
    with (
        tempfile.TemporaryDirectory() as folder,
        around,
        no_draw_checks(),
        ShapesOnly() as shapes,
        LiveMemory() as memory,
    ):
        with shapes.building():
            method: Method = method_of(settings)(settings, inputs_of(Path(folder)))
        trainer = Trainer(method, CPU)
        trainer.stand_alone()
        steps = _Steps(trainer, shapes, memory)
        phases = _phases(method)
        steps.make(max(phases, key=lambda phase: len(method.updates(phase[0])))[0])  # makes the optimizers' state
        steps.clear()
        means = [sum(map(steps.make, taken)) / len(taken) for taken in map(_sample, phases)]
        scale = num_processes * loop.accumulation / accumulation
        return DryRun(
            batch_size=batch_size,
            stretches=steps.stretches,
            gradients=steps.gradients,
            flops=scale * max(zip(map(len, phases), means, strict=True))[1],
            total_flops=scale * sum(len(phase) * mean for phase, mean in zip(phases, means, strict=True)),
            **_held(trainer),
        )


class _Steps:
    """Makes steps and notes what they need.

    Attributes:
        stretches: see ``DryRun``.
        gradients: see ``DryRun``.
    """

    def __init__(self, trainer: Trainer, shapes: ShapesOnly, memory: LiveMemory) -> None:
        self._trainer, self._shapes, self._memory = trainer, shapes, memory
        self._depth = 0  # Muon's step makes AdamW's, of which both are announced
        for optimizer in trainer.optimizers.values():
            optimizer.register_step_pre_hook(self._before)
            optimizer.register_step_post_hook(self._after)
        self.clear()

    def clear(self) -> None:
        """Forget the steps so far."""
        self.stretches: list[list[int]] = []
        self.gradients = 0

    def make(self, step: int) -> int:
        """One step; its floating-point operations."""
        before = self._shapes.flops
        self.stretches.append([])
        self._memory.restart()
        self._trainer.step(step)
        self._close()
        return self._shapes.flops - before

    def _close(self) -> None:
        self.stretches[-1].append(self._memory.peak)
        self._memory.restart()

    def _before(self, *_: object) -> None:
        self._depth += 1
        if self._depth == 1:
            self._close()
            gradients = [one.grad for network in self._trainer.method.trained.values() for one in network.parameters()]
            self.gradients = max(self.gradients, _num_bytes(one for one in gradients if one is not None))

    def _after(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._close()


def _phases(method: Method) -> list[list[int]]:
    """The steps of a run by what they update."""
    found: dict[Any, list[int]] = {}
    for step in range(method.num_steps):
        kind = tuple((one.network, _name(one.loss)) for one in method.updates(step))
        found.setdefault(kind, []).append(step)
    return list(found.values())


def _name(loss: Any) -> str:
    loss = getattr(loss, "func", loss)  # of a partial
    return getattr(loss, "__qualname__", type(loss).__qualname__)


def _sample(steps: Sequence[int]) -> list[int]:
    """The steps of a phase that are made: the first and the last."""
    return sorted({steps[0], steps[-1]})


def _held(trainer: Trainer) -> dict[str, int]:
    """What is there all the time, as fields of ``DryRun``."""
    trained = [one for network in trainer.method.trained.values() for one in network.parameters()]
    networks = [*trainer.method.trained.values(), *trainer.method.frozen.values()]
    weights = [tensor for network in networks for tensor in _tensors(network)]
    with_average = [*weights, *_tensors(trainer.average.module)]
    parameters = [one for network in (*networks, trainer.average.module) for one in network.parameters()]
    states = [
        value
        for optimizer in trainer.optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return {
        "parameters": sum({id(_local(one).untyped_storage()): one.numel() for one in parameters}.values()),
        "trained": sum(one.numel() for one in trained if one.requires_grad),
        "weights": _num_bytes(weights),
        "average": _num_bytes(with_average) - _num_bytes(weights),
        "moments": _num_bytes(states),
    }


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages, each counted once; of sharded tensors, this process's part."""
    storages = [_local(one).untyped_storage() for one in tensors]
    return sum({id(one): one.nbytes() for one in storages}.values())


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be sharded."""
    return getattr(tensor, "_local_tensor", tensor)
