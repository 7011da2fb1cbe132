"""One trainer for all methods: accumulation, DDP or FSDP2, autocast, clipping, averages, skipped steps, saved state."""

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from didi.errors import UsageError
from didi.methods import Method, method_of
from didi.methods.base import Inputs, Metrics, Update
from didi.methods.settings import RunConfig
from didi.models.adapters import merged
from didi.models.bundle import Bundle
from didi.models.discriminator import trunk_of
from didi.process_group import process_group
from didi.training.distributed import (
    Synchronised,
    check_batch_size,
    full_state,
    load_full_state,
    shard,
    unsharded,
)
from didi.training.loop import autocast_dtype
from didi.training.optim import Average, averaged_network, clip_and_step, is_on_cuda, learning_rate, make_optimizer
from didi.training.passes import PassCounter

R = TypeVar("R")
# Limit of compilations of a block for different shapes and modes (training, gradient); further ones run uncompiled.
COMPILED_VARIANTS = 64


class Trainer:
    """Trains the networks of a method; a ``loop.Job``, and the ``Runtime`` of the method.

    Args:
        method: the training method, with its networks.
        device: device of the networks.

    Raises:
        UsageError: the batch cannot be divided among the processes, or the settings do not fit the networks.
    """

    def __init__(self, method: Method, device: torch.device) -> None:
        self.method, self.device = method, device
        loop = self._loop = method.settings.loop
        check_batch_size(loop.batch_size)
        self.num_steps, self.tokens_per_step = method.num_steps, method.tokens_per_step
        averaged = method.trained[method.averaged_network]
        self.average = Average(averaged, loop.ema_decay, is_ramped=loop.ema_ramp)
        for network in method.trained.values():
            if (trunk := trunk_of(network)) is not None:
                trunk.keeps_activations = not loop.activation_checkpointing
        if loop.fsdp:
            self._shard()
        self._synchronised = {name: Synchronised(network) for name, network in method.trained.items()}
        self._autocast_dtype = autocast_dtype(loop.precision, device)
        self.optimizers = {
            name: make_optimizer(method.trained[name], config, self._autocast_dtype or torch.float32)
            for name, config in method.optimizers.items()
        }
        self._decides_on_device = is_on_cuda(averaged) and process_group().size == 1
        self._counter = None if loop.compile else PassCounter(self._networks())  # compiled blocks run no hooks
        if loop.compile:
            self._compile()
        method.start(self)

    def _compile(self) -> None:
        """Compile the blocks of every network in place; equal blocks share compiled code, which saves time."""
        torch._dynamo.config.recompile_limit = COMPILED_VARIANTS
        for network in self._networks():
            trunk = trunk_of(network)
            for block in () if trunk is None else trunk.blocks:
                block.compile()

    def _networks(self) -> list[nn.Module]:
        """All networks of the run, each once."""
        return [*self.method.trained.values(), *self.method.frozen.values(), self.average.module]

    def _shard(self) -> None:
        for network in self.method.trained.values():
            shard(network)
        shard(self.average.module, is_trained=False)
        for name, network in self.method.frozen.items():
            self.method.frozen[name] = copy.deepcopy(network)  # the caller's network is not sharded
            shard(self.method.frozen[name], is_trained=False)

    # ------------------------------------------------------------------------------------------------ one step --- #

    def step(self, step: int) -> Metrics:
        """The updates of a step; returns their metrics and the number of sequence passes (``training.passes``)."""
        if self._counter is None:
            return self._step(step)
        self._counter.reset()  # excludes passes of validations
        return {**self._step(step), "sequence_passes": float(self._counter.reset() * process_group().size)}

    def _step(self, step: int) -> Metrics:
        """The updates of a step, each on ``accumulation`` micro-batches.

        An update whose loss or gradient is not finite ends the step: neither its network nor the average changes, nor
        does any network after it. In a single process on a CUDA device the host does not wait for this decision: later
        updates are computed, but not applied.

        Raises:
            UsageError: a network has several updates in the step, and batches are accumulated.
        """
        updates = self.method.updates(step)
        repeats = Counter(update.network for update in updates)
        if self._loop.accumulation > 1 and max(repeats.values()) > 1:
            raise UsageError(
                "several updates of a network in a step cannot share accumulated batches: set loop.accumulation to 1; "
                f"got {self._loop.accumulation} and {max(repeats.values())} updates"
            )
        metrics: dict[str, Tensor | float] = {}
        is_finite: list[bool | Tensor] = [True] * len(updates)
        is_taken: bool | Tensor = True
        for micro_batch in range(self._loop.accumulation):
            is_last = micro_batch + 1 == self._loop.accumulation
            with self._micro_batch(is_last=is_last):
                batch = self.method.prepare(step, micro_batch)
                for index, update in enumerate(updates):
                    loss, update_metrics = update.loss(batch)
                    (loss / self._loop.accumulation).backward()  # gradients of micro-batches add up
                    is_finite[index] &= self._on_host(torch.isfinite(loss.detach()))
                    num_updates = repeats[update.network]
                    _add(metrics, update_metrics, 1 / (self._loop.accumulation * num_updates))
                    if is_last:
                        is_taken &= self._apply(update, is_finite[index] & is_taken, metrics, 1 / num_updates)
                        if is_taken is False:
                            self._clear_gradients()
                            self.method.end_step(step)
                            return metrics
        if self.method.averaged_network in repeats:
            self.average.update_parameters(self.method.trained[self.method.averaged_network], is_taken)
        self.method.end_step(step)
        return metrics

    def _on_host(self, flag: Tensor) -> bool | Tensor:
        """The flag as a bool, for which the host waits; unchanged if the device decides about updates."""
        return flag if self._decides_on_device else bool(flag)

    def _apply(
        self, update: Update, is_finite: bool | Tensor, metrics: dict[str, Tensor | float], scale: float
    ) -> bool | Tensor:
        """Clip gradients and step the optimizer; returns whether loss and gradient are finite."""
        config = self.method.optimizers[update.network]
        rate = learning_rate(config, update.step, update.num_steps)
        if not isinstance(is_finite, Tensor):  # all processes skip the update if the loss of one is not finite
            is_finite = not process_group().any(not is_finite)
        network, optimizer = self.method.trained[update.network], self.optimizers[update.network]
        norm = clip_and_step(network, optimizer, config, rate, is_finite=is_finite)
        prefix = f"{update.network}_" if len(self.method.trained) > 1 else ""
        rates: Metrics = {f"{prefix}gradient_norm": norm, f"{prefix}learning_rate": rate}
        _add(metrics, rates, scale)
        return is_finite & self._on_host(torch.isfinite(norm))

    def _clear_gradients(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def _micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Context of a micro-batch; the last one of an update averages gradients over processes."""
        with contextlib.ExitStack() as stack:
            for network in self._synchronised.values():
                stack.enter_context(network.micro_batch(is_last=is_last))
            yield

    def skip_averaging(self) -> None:
        """See ``Synchronised.skip_averaging``."""
        for network in self._synchronised.values():
            network.skip_averaging()

    # ------------------------------------------------------------------------------------------------- runtime --- #

    def call(self, network: str, function: Callable[..., R], *args: Any, **options: Any) -> R:
        """See ``Runtime.call``."""
        with self.autocast():
            return self._synchronised[network](function, *args, **options)

    def autocast(self) -> torch.autocast:
        """See ``Runtime.autocast``."""
        return torch.autocast(self.device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None)

    def averaged(self) -> nn.Module:
        """See ``Runtime.averaged``."""
        return averaged_network(self.average)

    # ---------------------------------------------------------------------------------------- state and result --- #

    def validate(self) -> dict[str, float]:
        """Metrics of the method on held-out sequences."""
        return self.method.validate()

    def state_dict(self) -> dict[str, Any]:
        """Trained weights, their average, optimizers and the state of the method; frozen weights are not saved."""
        states = {name: full_state(network, self.optimizers.get(name)) for name, network in self._saved().items()}
        return states | {"method": self.method.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of ``state_dict``.

        Raises:
            UsageError: the state is of another version or method, or the method refuses it.
        """
        names = {*self._saved(), "method"}
        if set(state) != names:
            raise UsageError(
                f"a checkpoint of this method holds {', '.join(sorted(names))}; got {', '.join(sorted(state))}: "
                "another version of didi wrote it; start again in another folder"
            )
        self.method.load_state_dict(state["method"])
        for name, network in self._saved().items():
            load_full_state(network, state[name], self.optimizers.get(name))

    def _saved(self) -> dict[str, nn.Module]:
        """Networks whose weights are saved."""
        return {**self.method.trained, "average": self.average}

    def bundle(self) -> Bundle:
        """The method's bundle, with unsharded networks and merged adapters."""
        bundle = self.method.bundle()
        for role, network in bundle.networks().items():
            without_adapters = merged(cast(Any, network))
            setattr(bundle, role, unsharded(cast(Any, without_adapters)))
        return bundle


def make_trainer(settings: RunConfig, inputs: Inputs) -> Trainer:
    """A trainer for the method whose settings class is that of ``settings``."""
    return Trainer(method_of(settings)(settings, inputs), inputs.device)


def _add(metrics: dict[str, Tensor | float], new: Metrics, scale: float = 1.0) -> None:
    for name, value in new.items():
        metrics[name] = metrics.get(name, 0.0) + value * scale
