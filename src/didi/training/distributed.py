"""Trained networks in several processes: gradients averaged (DDP), or weights sharded as well (FSDP2)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from didi.errors import UsageError
from didi.models.discriminator import trunk_of
from didi.models.networks import NETWORKS, DenoiserNetwork
from didi.process_group import process_group

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
        is_copied = process_group().size > 1 and not is_sharded(network)
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
    size = process_group().size if num_processes is None else num_processes
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
    if process_group().size == 1:
        return
    trunk = trunk_of(network)
    if trunk is None:
        raise UsageError("loop.fsdp shards diffusion transformers; leave it out for an autoregressive network")
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in trunk.blocks:
        fully_shard(block)
    fully_shard(network, reshard_after_forward=None if is_trained else True)
    if isinstance(network, DenoiserNetwork):  # what is called from outside without ``forward``
        for name in ("features", "head", "embed", "features_of_embeddings"):
            register_fsdp_forward_method(network, name)


def is_sharded(value: Any) -> bool:
    """Whether ``shard`` divided this network, or the tensor is of one that it divided; ask within ``joined``."""
    if process_group().size == 1:
        return False
    from torch.distributed.fsdp import FSDPModule  # a quarter or more of the start, which one process is spared
    from torch.distributed.tensor import DTensor

    return isinstance(value, FSDPModule | DTensor)


def full_state(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """What training changes, whole and on the CPU: weights but the frozen ones, buffers, moments under their names.

    All processes call it; those beside the main one get empty dicts.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict  # 1 s, of a run alone

    # The library makes the moments that are not there yet by a step, which would count as one.
    begun = [optimizer] if optimizer is not None and optimizer.state else []
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights, moments = get_state_dict(network, begun, options=options)
    return {"weights": weights, "optimizer": moments}


def load_full_state(network: nn.Module, state: dict[str, Any], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Load a state of ``full_state``, which every process has, into what may be sharded; frozen weights stay.

    Raises:
        UsageError: it lacks weights that are trained.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    # The library leaves what a state lacks as it is and says nothing.
    frozen = {name for name, one in network.named_parameters() if not one.requires_grad}
    if lacking := network.state_dict().keys() - frozen - state["weights"].keys():
        raise UsageError(
            f"a checkpoint holds all trained weights; this one lacks {min(lacking)}: another version of didi wrote it; "
            "begin again in another folder with --out"
        )
    set_state_dict(
        network,
        [optimizer] if optimizer is not None and state["optimizer"] else [],
        model_state_dict=state["weights"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )


def unsharded(network: Network) -> Network:
    """The network with all of its weights; itself where it is not sharded."""
    if not is_sharded(network):
        return network
    kind = next(one.network for one in NETWORKS.values() if isinstance(network, one.network))  # without FSDP's class
    whole: Any = kind(network.config)
    # One by one: get_model_state_dict gives all processes the weights only where it keeps all of them on the device.
    held = network.state_dict()
    whole.load_state_dict({name: one.full_tensor().cpu() if is_sharded(one) else one for name, one in held.items()})
    return cast(Network, whole.eval())
