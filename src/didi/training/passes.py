"""How much work the networks of a run do: sequences that pass through them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from didi.models.discriminator import trunk_of

BACKWARD = 2  # a backward pass counts as two forward passes, one for the inputs' gradients and one for the weights'


class PassCounter:
    """Counts sequences through transformer trunks, on the host; a pass that keeps a gradient counts three times.

    Blocks that are run again in the backward pass (``LoopConfig.activation_checkpointing``) count once more.

    Args:
        networks: whatever has a trunk is counted.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self._count = 0
        for network in networks:
            if (trunk := trunk_of(network)) is not None:
                is_trained = any(one.requires_grad for one in network.parameters())
                trunk.blocks[0].register_forward_pre_hook(self._trained if is_trained else self._frozen)

    def _trained(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        is_repeated = torch._C._current_graph_task_id() != -1  # by a backward pass, which is counted already
        self._count += len(args[0]) * (1 + BACKWARD * (torch.is_grad_enabled() and not is_repeated))

    def _frozen(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._count += len(args[0])

    def taken(self) -> int:
        """The count since it was last taken."""
        count, self._count = self._count, 0
        return count
