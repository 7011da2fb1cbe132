"""Memory and operations of a training run, from real steps of its method without arithmetic, at two batch sizes.

A dry run builds the trainer on networks without values (``shapes_only``), runs steps of every phase of the method, and
counts allocated bytes (``live_memory``) and floating-point operations. It works for any method, since it runs the
method's code. A step is divided into segments: up to the first optimizer step, each optimizer step, the time between
them, and the rest. The peak of each segment is extrapolated linearly in the batch size; the largest is the peak.
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
"""Maximum number of micro-batches in an update of a dry run; a third would need as much memory as the second."""
CPU = torch.device("cpu")

InputsOf = Callable[[Path], Inputs]
"""Creates the inputs of the method, on the CPU, from the folder of the run; its networks get no values."""


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run. Bytes are those of one device.

    Attributes:
        batch_size: number of sequences on all devices.
        parameters: number of parameters of all networks; shared parameters count once.
        trained: number of trained parameters.
        weights: bytes of parameters and buffers of all networks except the average.
        average: additional bytes of the averaged network.
        moments: bytes of the optimizers' state.
        gradients: maximum over optimizer steps of the bytes of gradients.
        segments: for each step, the peak bytes of each of its segments.
        flops: operations of a step on all devices, the mean over the steps of the longest phase.
        total_flops: operations of the whole run on all devices.
    """

    batch_size: int
    parameters: int
    trained: int
    weights: int
    average: int
    moments: int
    gradients: int
    segments: Sequence[Sequence[int]]
    flops: float
    total_flops: float

    @property
    def peak(self) -> int:
        """Peak bytes of all steps."""
        return max(map(max, self.segments))


@dataclass(frozen=True)
class Estimate:
    """Memory and operations of a run as a function of its batch size, from two dry runs."""

    small: DryRun
    large: DryRun

    def peak(self, batch_size: int) -> float:
        """Peak bytes on one device, extrapolated linearly in the batch size of all devices."""
        fraction = (batch_size - self.small.batch_size) / (self.large.batch_size - self.small.batch_size)
        pairs = zip(self.small.segments, self.large.segments, strict=True)
        return max(
            low + fraction * max(0, high - low)
            for of_small, of_large in pairs
            for low, high in zip(of_small, of_large, strict=True)
        )

    def of(self, batch_size: int) -> DryRun:
        """The smaller dry run if it has this batch size, otherwise the larger one."""
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
    """Memory and operations as a function of the batch size, by dry runs at two batch sizes.

    Args:
        settings: settings of the run; ``loop.precision`` is the precision on the target device.
        inputs_of: creates the inputs of the method.
        num_processes: number of devices that share the batch, one process each; the result is that of rank 0.
        batch_sizes: batch sizes of all devices. None: that of ``settings`` and half of it, or twice if half is not
            allowed.

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
        except UsageError:  # half the batch is too small for the groups of the advantages
            pass
    return Estimate(base, dry_run(settings, inputs_of, 2 * size, num_processes=num_processes))


def dry_run(settings: RunConfig, inputs_of: InputsOf, batch_size: int, *, num_processes: int = 1) -> DryRun:
    """Dry run of the first and last step of every phase at one batch size; arguments as in ``estimate``."""
    loop = settings.loop
    accumulation = min(MICRO_BATCHES, loop.accumulation)
    cut = replace(loop, batch_size=batch_size, accumulation=accumulation)
    settings = replace(settings.for_dry_run(), loop=cut)
    group = fake_process_group(num_processes) if num_processes > 1 else nullcontext()
    with (
        tempfile.TemporaryDirectory() as folder,
        group,
        no_draw_checks(),
        ShapesOnly() as shapes,
        LiveMemory() as memory,
    ):
        with shapes.building():
            method: Method = method_of(settings)(settings, inputs_of(Path(folder)))
        trainer = Trainer(method, CPU)
        trainer.skip_averaging()
        steps = _StepRecorder(trainer, shapes, memory)
        phases = _phases(method)
        steps.run(max(phases, key=lambda phase: len(method.updates(phase[0])))[0])  # creates the optimizers' state
        steps.clear()
        means = [sum(map(steps.run, sample)) / len(sample) for sample in map(_first_and_last, phases)]
        scale = num_processes * loop.accumulation / accumulation
        return DryRun(
            batch_size=batch_size,
            segments=steps.segments,
            gradients=steps.gradients,
            flops=scale * max(zip(map(len, phases), means, strict=True))[1],
            total_flops=scale * sum(len(phase) * mean for phase, mean in zip(phases, means, strict=True)),
            **_persistent_memory(trainer),
        )


class _StepRecorder:
    """Runs steps and records their memory.

    Attributes:
        segments: see ``DryRun``.
        gradients: see ``DryRun``.
    """

    def __init__(self, trainer: Trainer, shapes: ShapesOnly, memory: LiveMemory) -> None:
        self._trainer, self._shapes, self._memory = trainer, shapes, memory
        self._depth = 0  # nesting depth: Muon's step calls that of AdamW, and both call the hooks
        for optimizer in trainer.optimizers.values():
            optimizer.register_step_pre_hook(self._before)
            optimizer.register_step_post_hook(self._after)
        self.clear()

    def clear(self) -> None:
        """Delete the records of all steps."""
        self.segments: list[list[int]] = []
        self.gradients = 0

    def run(self, step: int) -> int:
        """Run a step; returns its floating-point operations."""
        before = self._shapes.flops
        self.segments.append([])
        self._memory.reset_peak()
        self._trainer.step(step)
        self._end_segment()
        return self._shapes.flops - before

    def _end_segment(self) -> None:
        self.segments[-1].append(self._memory.peak)
        self._memory.reset_peak()

    def _before(self, *_: object) -> None:
        self._depth += 1
        if self._depth == 1:
            self._end_segment()
            networks = self._trainer.method.trained.values()
            gradients = [weight.grad for network in networks for weight in network.parameters()]
            self.gradients = max(self.gradients, _num_bytes(grad for grad in gradients if grad is not None))

    def _after(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._end_segment()


def _phases(method: Method) -> list[list[int]]:
    """The steps of a run, grouped by their updates: equal networks and losses in equal order."""
    phases: dict[Any, list[int]] = {}
    for step in range(method.num_steps):
        kind = tuple((update.network, _name(update.loss)) for update in method.updates(step))
        phases.setdefault(kind, []).append(step)
    return list(phases.values())


def _name(loss: Any) -> str:
    loss = getattr(loss, "func", loss)  # the function of a functools.partial
    return getattr(loss, "__qualname__", type(loss).__qualname__)


def _first_and_last(steps: Sequence[int]) -> list[int]:
    """The steps of a phase that a dry run runs."""
    return sorted({steps[0], steps[-1]})


def _persistent_memory(trainer: Trainer) -> dict[str, int]:
    """Sizes of networks and optimizers, as fields of ``DryRun``."""
    trained = [weight for network in trainer.method.trained.values() for weight in network.parameters()]
    networks = [*trainer.method.trained.values(), *trainer.method.frozen.values()]
    weights = [tensor for network in networks for tensor in _tensors(network)]
    with_average = [*weights, *_tensors(trainer.average.module)]
    parameters = [weight for network in (*networks, trainer.average.module) for weight in network.parameters()]
    states = [
        value
        for optimizer in trainer.optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return {
        "parameters": sum({id(_local(weight).untyped_storage()): weight.numel() for weight in parameters}.values()),
        "trained": sum(weight.numel() for weight in trained if weight.requires_grad),
        "weights": _num_bytes(weights),
        "average": _num_bytes(with_average) - _num_bytes(weights),
        "moments": _num_bytes(states),
    }


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once; for sharded tensors, of this process's part."""
    storages = [_local(tensor).untyped_storage() for tensor in tensors]
    return sum({id(storage): storage.nbytes() for storage in storages}.values())


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be sharded."""
    return getattr(tensor, "_local_tensor", tensor)
