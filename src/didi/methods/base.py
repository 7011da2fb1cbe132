"""What the trainer asks of a training method, and what a method may ask of the trainer.

The trainer (``training.trainer``) owns loops, devices, precision, optimizers, averages, sharding and checkpoints. A
method owns its algorithm: what is trained, on which batch, by which losses in which order. A new method is one file
with its settings and its class, one line in ``didi.methods.METHODS`` and one recipe.
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
Figures = Mapping[str, Tensor | float]
Loss = Callable[[Any], tuple[Tensor, Figures]]


@dataclass(frozen=True)
class Update:
    """One update of one network within a step.

    Attributes:
        network: name in ``Method.trained``.
        loss: from the batch of ``Method.prepare`` to the loss of a micro-batch, and figures for the log.
        step: place of the update in the learning-rate schedule of the network, from 0.
        num_steps: length of that schedule.
    """

    network: str
    loss: Loss
    step: int
    num_steps: int


@runtime_checkable
class Runtime(Protocol):
    """What the trainer does for a method.

    Attributes:
        device: where the networks are.
    """

    device: torch.device

    def call(self, network: str, function: Callable[..., R], *args: Any, **options: Any) -> R:
        """``function(network, ...)`` for a trained network, under autocast; gradients are synchronised over processes.

        Back-propagate through what it returns once. Calls that need no gradient go to the network itself.
        """
        ...

    def cast(self) -> AbstractContextManager[Any]:
        """Autocast for network passes outside ``call``."""
        ...

    def averaged(self) -> nn.Module:
        """The network ``Method.averaged`` with the moving average of its weights, in eval mode."""
        ...


@dataclass(frozen=True)
class Inputs:
    """What a method is built from.

    Attributes:
        source: token sequences.
        device: where the networks live.
        folder: of the run, for what a method keeps there.
        teacher: bundle of the teacher; None for methods without one.
    """

    source: Source
    device: torch.device
    folder: Path = Path()
    teacher: Bundle | None = None


def teacher_of(bundle: Bundle) -> DenoiserNetwork:
    """The network that a distillation takes as its teacher; a student never stands in for it.

    Raises:
        UsageError: the bundle has none.
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
        name: in ``METHODS`` and on the command line.
        settings_type: dataclass of its settings.
        settings: of this run.
        trained: networks with gradients, by name.
        frozen: networks that are read only; the trainer may replace them by sharded copies.
        averaged_network: name of the trained network of which a moving average is kept.
        optimizers: of each trained network.
        num_steps: steps of the whole run.
        tokens_per_step: tokens that a step learns from.
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
        """Called once, when networks are placed, sharded and averaged, before the first step."""
        ...

    def prepare(self, step: int, micro_batch: int) -> Any:
        """The batch of a micro-batch; a function of seed, step and number alone."""
        ...

    def updates(self, step: int) -> Sequence[Update]:
        """The updates of a step in their order; each is stepped before the next loss is formed."""
        ...

    def end_step(self, step: int) -> None:
        """Called after the updates of a step."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on held-out sequences."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State beyond ``trained``."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a state of ``state_dict``."""
        ...

    def bundle(self) -> Bundle:
        """The finished networks; those of ``trained`` may be sharded or adapted, see ``training.distributed``."""
        ...
