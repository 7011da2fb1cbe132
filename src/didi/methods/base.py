"""The interface between the trainer and a training method.

The trainer (``training.trainer``) implements loops, devices, precision, optimizers, averages, sharding and checkpoints.
A method implements its algorithm: the trained networks, the batches, the losses and their order. A new method is one
file with its settings and its class, one line in ``didi.methods.METHODS`` and one recipe.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from didi.data.source import Source
from didi.errors import UsageError
from didi.methods.settings import OptimizerConfig, RunConfig
from didi.models.bundle import Bundle
from didi.models.networks import DenoiserNetwork

R = TypeVar("R")
Metrics = Mapping[str, Tensor | float]
Loss = Callable[[Any], tuple[Tensor, Metrics]]


@dataclass(frozen=True)
class Update:
    """One update of one network within a step.

    Attributes:
        network: key in ``Method.trained``.
        loss: maps the batch of ``Method.prepare`` to the loss of a micro-batch and to metrics for the log.
        step: position of the update in the learning-rate schedule of the network, from 0.
        num_steps: length of that schedule.
    """

    network: str
    loss: Loss
    step: int
    num_steps: int


@runtime_checkable
class Runtime(Protocol):
    """The services of the trainer that a method may use.

    Attributes:
        device: device of the networks.
    """

    device: torch.device

    def call(self, network: str, function: Callable[..., R], *args: Any, **options: Any) -> R:
        """``function(network, ...)`` for a trained network, under autocast; gradients are synchronised over processes.

        Back-propagate through the result exactly once. A pass that needs no gradient calls the network directly.
        """
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """Context manager: autocast for network passes outside ``call``."""
        ...

    def averaged(self) -> nn.Module:
        """The network ``Method.averaged_network`` with the moving average of its weights, in eval mode."""
        ...


@dataclass(frozen=True)
class Inputs:
    """Constructor inputs of a method, beside its settings.

    Attributes:
        source: token sequences.
        device: device of the networks.
        folder: folder of the run, for files that a method keeps.
        teacher: bundle of the teacher; None for methods without a teacher.
    """

    source: Source
    device: torch.device
    folder: Path = Path()
    teacher: Bundle | None = None


def teacher_of(bundle: Bundle) -> DenoiserNetwork:
    """The teacher network of a bundle; a student is never used in its place.

    Raises:
        UsageError: the bundle has no teacher.
    """
    if bundle.teacher is None:
        raise UsageError(
            f"a distillation takes the teacher of a bundle; {bundle.name} has none (it holds "
            f"{', '.join(bundle.networks())}): name a bundle with a teacher, or save a student as one with "
            "didi.Bundle(teacher=bundle.student, ...).save_pretrained(FOLDER)"
        )
    return bundle.teacher


@runtime_checkable
class Method(Protocol):
    """A training method; constructed as ``Kind(settings, inputs)``.

    Attributes:
        name: key in ``METHODS``, and the name on the command line.
        settings_type: dataclass of its settings.
        settings: settings of this run.
        trained: networks with gradients, by name.
        frozen: networks without gradients, by name; the trainer may replace them by sharded copies.
        averaged_network: name of the trained network of which a moving average is kept.
        optimizers: optimizer settings of each trained network, by its name.
        num_steps: steps of the whole run.
        tokens_per_step: training tokens of a step.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[RunConfig]]
    settings: Any
    trained: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    averaged_network: str
    optimizers: Mapping[str, OptimizerConfig]
    num_steps: int
    tokens_per_step: int

    def start(self, runtime: Runtime) -> None:
        """Called once before the first step, after networks are moved to the device and sharded."""
        ...

    def prepare(self, step: int, micro_batch: int) -> Any:
        """The batch of micro-batch number ``micro_batch``; it depends on seed, step and this number only."""
        ...

    def updates(self, step: int) -> Sequence[Update]:
        """The updates of a step in order; the optimizer steps after each, before the next loss is computed."""
        ...

    def end_step(self, step: int) -> None:
        """Called after the updates of a step."""
        ...

    def validate(self) -> dict[str, float]:
        """Metrics on held-out sequences."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State of the method beside the weights of ``trained``."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of ``state_dict``."""
        ...

    def bundle(self) -> Bundle:
        """The result of the run; its networks may be sharded or have adapters, see ``Trainer.bundle``."""
        ...
