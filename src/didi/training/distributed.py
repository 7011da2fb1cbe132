"""Training in several processes: averaged gradients (DDP), or sharded weights too (FSDP2)."""

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


class _FunctionModule(nn.Module):
    """Calls a function of its network in ``forward``, since DistributedDataParallel synchronises ``forward`` only."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., R], *args: Any, **options: Any) -> R:
        return function(self.network, *args, **options)


class Synchronised:
    """A trained network whose gradients are averaged over all processes.

    Args:
        network: the network; in a single process, or if it is sharded, calls are not wrapped.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        is_copied = process_group().size > 1 and not is_sharded(network)
        self._parallel = DistributedDataParallel(_FunctionModule(network)) if is_copied else None

    def __call__(self, function: Callable[..., R], *args: Any, **options: Any) -> R:
        """``function(network, *args, **options)``; back-propagate through the result exactly once."""
        if self._parallel is None:
            return function(self.network, *args, **options)
        result: R = self._parallel(function, *args, **options)
        return result

    def skip_averaging(self) -> None:
        """Do not average gradients, for a group whose other processes do not exist (``fake_process_group``)."""
        if self._parallel is not None:
            self._parallel.register_comm_hook(None, _local_gradients)

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Context of forward and backward pass of a micro-batch; the last one of an update averages the gradients."""
        if self._parallel is not None and not is_last:
            return self._parallel.no_sync()
        network: Any = self.network
        if is_sharded(network):
            network.set_requires_gradient_sync(is_last)
        return nullcontext()


def _local_gradients(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def check_batch_size(batch_size: int, num_processes: int | None = None) -> None:
    """Refuse a batch size that is not a multiple of the number of processes, by default that of ``process_group``.

    Raises:
        UsageError: the processes cannot share the batch equally.
    """
    size = process_group().size if num_processes is None else num_processes
    if batch_size % size:
        raise UsageError(
            f"loop.batch_size counts the rows of all processes and is a multiple of their number; got {batch_size} and "
            f"{size} processes"
        )


def shard(network: nn.Module, *, is_trained: bool = True) -> None:
    """Shard the weights over the processes, in place, block by block; a single process does nothing.

    Args:
        network: network to shard.
        is_trained: False for a network without a backward pass. Its weights are sharded again after each forward pass,
            not after the backward pass, so that an average can be updated after it was evaluated.

    Raises:
        UsageError: the network has no transformer trunk, which is the case for autoregressive networks.
    """
    if process_group().size == 1:
        return
    trunk = trunk_of(network)
    if trunk is None:
        raise UsageError("loop.fsdp does not support autoregressive networks: leave it out")
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in trunk.blocks:
        fully_shard(block)
    fully_shard(network, reshard_after_forward=None if is_trained else True)
    if isinstance(network, DenoiserNetwork):  # methods that are called instead of ``forward``
        for name in ("features", "head", "embed", "features_of_embeddings"):
            register_fsdp_forward_method(network, name)


def is_sharded(value: Any) -> bool:
    """Whether ``value`` is a sharded network or a tensor of a sharded network."""
    if process_group().size == 1:
        return False
    from torch.distributed.fsdp import FSDPModule  # slow import, at least a quarter of the start-up time
    from torch.distributed.tensor import DTensor

    return isinstance(value, FSDPModule | DTensor)


def full_state(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Unsharded training state on the CPU: trained weights, buffers, and optimizer moments by parameter name.

    All processes must call it; only the main process gets the state, the others get empty dicts.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict  # slow import, 1 s

    # For an optimizer without state, torch would create it by an optimizer step, which would be counted.
    optimizers = [optimizer] if optimizer is not None and optimizer.state else []
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights, moments = get_state_dict(network, optimizers, options=options)
    return {"weights": weights, "optimizer": moments}


def load_full_state(network: nn.Module, state: dict[str, Any], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Load a state of ``full_state`` into a network that may be sharded; frozen weights do not change.

    Every process must have the whole state.

    Raises:
        UsageError: the state lacks trained weights.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    # ``set_state_dict`` does not report missing weights.
    frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    if missing := network.state_dict().keys() - frozen - state["weights"].keys():
        raise UsageError(
            f"a checkpoint holds all trained weights; this one lacks {min(missing)}: another version of didi wrote it; "
            "start again in another folder"
        )
    set_state_dict(
        network,
        [optimizer] if optimizer is not None and state["optimizer"] else [],
        model_state_dict=state["weights"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )


def unsharded(network: Network) -> Network:
    """A copy with all weights of a sharded network; an unsharded network is returned unchanged."""
    if not is_sharded(network):
        return network
    kind = next(entry.network for entry in NETWORKS.values() if isinstance(network, entry.network))  # not FSDP's class
    whole: Any = kind(network.config)
    # One weight at a time: with get_model_state_dict all weights would have to be on the device at once.
    weights = network.state_dict().items()
    whole.load_state_dict({name: value.full_tensor().cpu() if is_sharded(value) else value for name, value in weights})
    return cast(Network, whole.eval())
