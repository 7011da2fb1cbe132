"""Trained networks over the processes of ``didi.world``: gradients averaged (DDP) or weights sharded too (FSDP2)."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from didi.errors import UsageError
from didi.models.discriminator import Discriminator, current_names, trunk_of
from didi.models.dit import DiT
from didi.models.networks import NETWORKS
from didi.world import world

R = TypeVar("R")
Network = TypeVar("Network", bound=nn.Module)


class _Called(nn.Module):
    """Calls any function of its network within ``forward``, where DistributedDataParallel expects its passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., R], *args: Any, **options: Any) -> R:
        return function(self.network, *args, **options)


class Synchronised:
    """Passes of a network whose gradients are to be the mean over all processes.

    Args:
        network: what is trained; alone, or sharded, it is called as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        is_copied = world().size > 1 and not is_sharded(network)
        self._parallel = DistributedDataParallel(_Called(network)) if is_copied else None

    def __call__(self, function: Callable[..., R], *args: Any, **options: Any) -> R:
        """``function(network, *args, **options)``; back-propagate through what it returns once."""
        if self._parallel is None:
            return function(self.network, *args, **options)
        result: R = self._parallel(function, *args, **options)
        return result

    def stand_alone(self) -> None:
        """Leave gradients as they are where the other processes do not exist (``world.stand_in``)."""
        if self._parallel is not None:
            self._parallel.register_comm_hook(None, _as_it_is)

    def until(self, is_last: bool) -> AbstractContextManager[None]:
        """Around forward and backward pass of a micro-batch: gradients are averaged with the last one of an update."""
        if self._parallel is not None and not is_last:
            return self._parallel.no_sync()
        network: Any = self.network
        if is_sharded(network):
            network.set_requires_gradient_sync(is_last)
        return nullcontext()


def _as_it_is(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def check_divides(batch_size: int, num_processes: int | None = None) -> None:
    """Refuse a batch that so many processes, those of ``world`` by default, cannot share evenly.

    Raises:
        UsageError: it is no multiple of their number.
    """
    size = world().size if num_processes is None else num_processes
    if batch_size % size:
        raise UsageError(
            f"loop.batch_size counts the rows of all processes and is a multiple of their number; got {batch_size} and "
            f"{size} processes"
        )


def shard(network: nn.Module, *, is_trained: bool = True) -> None:
    """Divide the weights among the processes, in place, block by block; nothing where there is one process.

    Args:
        network: what is divided.
        is_trained: False for a network without a backward pass, which would divide the weights again: each forward pass
            does, so that an average can be updated after it was evaluated.

    Raises:
        UsageError: the network is not one of ours.
    """
    if world().size == 1:
        return
    trunk = trunk_of(network)
    if trunk is None:
        raise UsageError("loop.fsdp shards diffusion transformers; leave it out for an autoregressive network")
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in trunk.blocks:
        fully_shard(block)
    fully_shard(network, reshard_after_forward=None if is_trained else True)
    if isinstance(network, DiT):  # what is called from outside without ``forward``
        for name in ("features", "head"):
            register_fsdp_forward_method(network, name)


def is_sharded(value: Any) -> bool:
    """Whether ``shard`` divided this network, or the tensor is of one that it divided; ask within ``joined``."""
    if world().size == 1:
        return False
    from torch.distributed.fsdp import FSDPModule  # a quarter or more of the start, which one process is spared
    from torch.distributed.tensor import DTensor

    return isinstance(value, FSDPModule | DTensor)


def trained_state(target: nn.Module | torch.optim.Optimizer) -> dict[str, Any]:
    """The state that training changes: of a network its buffers and its weights but the frozen ones."""
    state: dict[str, Any] = target.state_dict()
    if isinstance(target, nn.Module):
        frozen = {name for name, parameter in target.named_parameters() if not parameter.requires_grad}
        state = {name: value for name, value in state.items() if name not in frozen}
    return state


def full_state(state: Any) -> Any:
    """A nested state without shards: every process gets all of it, on the CPU where it was sharded."""
    if is_sharded(state):
        return state.full_tensor().cpu()
    if isinstance(state, Mapping):
        return {key: full_state(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [full_state(value) for value in state]
    return state


def load_full_state(target: nn.Module | torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the trained state, without shards, into what may be sharded."""
    if isinstance(target, torch.optim.Optimizer):
        target.load_state_dict(state)
        for parameter, held in target.state.items():
            for name, value in held.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    held[name] = _placed_as(value, parameter)
        return
    if isinstance(target, Discriminator):  # of an older checkpoint
        state = current_names(state)
    held = target.state_dict()
    frozen = {name: held[name] for name in held.keys() - trained_state(target).keys()}
    target.load_state_dict(frozen | {name: _placed_as(value, held[name]) for name, value in state.items()})


def unsharded(network: Network) -> Network:
    """The network with all of its weights; itself where it is not sharded."""
    if not is_sharded(network):
        return network
    kind = next(one.network for one in NETWORKS.values() if isinstance(network, one.network))  # without FSDP's class
    whole: Any = kind(network.config)
    whole.load_state_dict(full_state(network.state_dict()))
    return cast(Network, whole.eval())


def _placed_as(value: Tensor, like: Any) -> Tensor:
    if not is_sharded(like) or is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
