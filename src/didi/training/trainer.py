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
from didi.methods.base import Figures, Inputs, Update
from didi.methods.settings import RunConfig
from didi.models.adapters import merged
from didi.models.bundle import Bundle
from didi.models.discriminator import trunk_of
from didi.process_group import process_group
from didi.training.distributed import (
    Synchronised,
    check_divides,
    full_state,
    load_full_state,
    shard,
    unsharded,
)
from didi.training.loop import Metrics, autocast_dtype
from didi.training.optim import Average, averaged_network, is_on_cuda, learning_rate, make_optimizer, update
from didi.training.passes import PassCounter

R = TypeVar("R")
# Shapes and modes (training or not, with a gradient or not) of the same block; beyond them it runs uncompiled.
COMPILED_VARIANTS = 64


class Trainer:
    """Trains the networks of a method; a ``loop.Job``, and the ``Runtime`` of the method.

    Args:
        method: what is trained, and how.
        device: where the networks live.

    Raises:
        UsageError: the batch cannot be divided among the processes, or the settings do not fit the networks.
    """

    def __init__(self, method: Method, device: torch.device) -> None:
        self.method, self.device = method, device
        loop = self._loop = method.settings.loop
        check_divides(loop.batch_size)
        self.num_steps, self.tokens_per_step = method.num_steps, method.tokens_per_step
        of_average = method.trained[method.averaged_network]
        self.average = Average(of_average, loop.ema_decay, is_ramped=loop.ema_ramp)
        for network in method.trained.values():
            if (trunk := trunk_of(network)) is not None:
                trunk.keeps_activations = not loop.activation_checkpointing
        if loop.fsdp:
            self._shard()
        self._passes = {name: Synchronised(network) for name, network in method.trained.items()}
        self.optimizers = {name: make_optimizer(method.trained[name], one) for name, one in method.optimizers.items()}
        self._decides_on_device = is_on_cuda(of_average) and process_group().size == 1
        self._counter = None if loop.compile else PassCounter(self._networks())  # compiled blocks run no hooks
        if loop.compile:
            self._compile()
        self._autocast = autocast_dtype(loop.precision, device)
        method.start(self)

    def _compile(self) -> None:
        """Compile the blocks of every network in place: equal blocks share their code, which keeps this short."""
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
            self.method.frozen[name] = copy.deepcopy(network)  # the caller's stays whole
            shard(self.method.frozen[name], is_trained=False)

    # ------------------------------------------------------------------------------------------------ one step --- #

    def step(self, step: int) -> Metrics:
        """The updates of a step, with how many sequences passed through the networks for them (``passes``)."""
        if self._counter is None:
            return self._step(step)
        self._counter.taken()  # those of validations and averages before
        return {**self._step(step), "sequence_passes": float(self._counter.taken() * process_group().size)}

    def _step(self, step: int) -> Metrics:
        """The updates of a step, each on ``accumulation`` micro-batches.

        An update whose loss or gradient is not finite ends the step: neither its network nor the average changes, nor
        does any network after it. In a single process a CUDA device decides this itself, and the host does not wait:
        later updates are computed then, but not applied.

        Raises:
            UsageError: a network has several updates in the step, and batches are accumulated.
        """
        updates = self.method.updates(step)
        repeats = Counter(one.network for one in updates)
        if self._loop.accumulation > 1 and max(repeats.values()) > 1:
            raise UsageError(
                "several updates of a network in a step cannot share accumulated batches: set loop.accumulation to 1; "
                f"got {self._loop.accumulation} and {max(repeats.values())} updates"
            )
        figures: dict[str, Tensor | float] = {}
        is_finite: list[bool | Tensor] = [True] * len(updates)
        is_taken: bool | Tensor = True
        for number in range(self._loop.accumulation):
            is_last = number + 1 == self._loop.accumulation
            with self._synchronised(is_last):
                batch = self.method.prepare(step, number)
                for place, one in enumerate(updates):
                    loss, found = one.loss(batch)
                    (loss / self._loop.accumulation).backward()
                    is_finite[place] &= self._on_host(torch.isfinite(loss.detach()))
                    _add(figures, found, 1 / (self._loop.accumulation * repeats[one.network]))
                    if is_last:
                        is_taken &= self._stepped(one, is_finite[place] & is_taken, figures, 1 / repeats[one.network])
                        if is_taken is False:
                            self._clear_gradients()
                            self.method.end_step(step)
                            return figures
        if self.method.averaged_network in repeats:
            self.average.update_parameters(self.method.trained[self.method.averaged_network], is_taken)
        self.method.end_step(step)
        return figures

    def _on_host(self, flag: Tensor) -> bool | Tensor:
        """A 0-dim flag as a bool, for which the host waits; as it is where the device decides."""
        return flag if self._decides_on_device else bool(flag)

    def _stepped(
        self, one: Update, is_finite: bool | Tensor, figures: dict[str, Tensor | float], scale: float
    ) -> bool | Tensor:
        """Clip and step; whether loss and gradient were finite."""
        config = self.method.optimizers[one.network]
        rate = learning_rate(config, one.step, one.num_steps)
        if not isinstance(is_finite, Tensor):
            is_finite = not process_group().any(not is_finite)
        network, optimizer = self.method.trained[one.network], self.optimizers[one.network]
        norm = update(network, optimizer, config, rate, is_finite=is_finite)
        prefix = f"{one.network}_" if len(self.method.trained) > 1 else ""
        rates: Figures = {f"{prefix}gradient_norm": norm, f"{prefix}learning_rate": rate}
        _add(figures, rates, scale)
        return is_finite & self._on_host(torch.isfinite(norm))

    def _clear_gradients(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def _synchronised(self, is_last: bool) -> Iterator[None]:
        """Gradients are averaged over processes with the last micro-batch of an update."""
        with contextlib.ExitStack() as stack:
            for passes in self._passes.values():
                stack.enter_context(passes.until(is_last))
            yield

    def stand_alone(self) -> None:
        """See ``Synchronised.stand_alone``."""
        for passes in self._passes.values():
            passes.stand_alone()

    # ------------------------------------------------------------------------------------------------- runtime --- #

    def call(self, network: str, function: Callable[..., R], *args: Any, **options: Any) -> R:
        """See ``Runtime.call``."""
        with self.cast():
            return self._passes[network](function, *args, **options)

    def cast(self) -> torch.autocast:
        """See ``Runtime.cast``."""
        return torch.autocast(self.device.type, dtype=self._autocast, enabled=self._autocast is not None)

    def averaged(self) -> nn.Module:
        """See ``Runtime.averaged``."""
        return averaged_network(self.average)

    # --------------------------------------------------------------------------------------------- state, ends --- #

    def validate(self) -> dict[str, float]:
        """Figures of the method on held-out sequences."""
        return self.method.validate()

    def state_dict(self) -> dict[str, Any]:
        """Trained weights, their average, optimizers and the method's own state; frozen weights are not saved."""
        held = {name: full_state(one, self.optimizers.get(name)) for name, one in self._held().items()}
        return held | {"method": self.method.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a state of ``state_dict``.

        Raises:
            UsageError: it is of another version or method, or the method refuses it.
        """
        held = {*self._held(), "method"}
        if set(state) != held:
            raise UsageError(
                f"a checkpoint of this method holds {', '.join(sorted(held))}; got {', '.join(sorted(state))}: another "
                "version of didi wrote it; begin again in another folder with --out"
            )
        self.method.load_state_dict(state["method"])
        for name, one in self._held().items():
            load_full_state(one, state[name], self.optimizers.get(name))

    def _held(self) -> dict[str, nn.Module]:
        return {**self.method.trained, "average": self.average}

    def bundle(self) -> Bundle:
        """The method's bundle with whole networks, adapters merged."""
        bundle = self.method.bundle()
        for role, network in bundle.networks().items():
            whole = merged(cast(Any, network))
            setattr(bundle, role, unsharded(cast(Any, whole)))
        return bundle


def make_trainer(settings: RunConfig, inputs: Inputs) -> Trainer:
    """A trainer of the method that ``settings`` belong to."""
    return Trainer(method_of(settings)(settings, inputs), inputs.device)


def _add(figures: dict[str, Tensor | float], new: Figures, scale: float = 1.0) -> None:
    for name, value in new.items():
        figures[name] = figures.get(name, 0.0) + value * scale
