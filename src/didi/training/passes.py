"""Counter of sequence passes: the number of sequences that pass through the networks of a run."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from didi.models.discriminator import trunk_of

# A backward pass counts as two forward passes: it computes gradients of the inputs, and of the weights.
BACKWARD = 2


class PassCounter:
    """Counts sequences through transformer trunks, on the host; a pass with gradient counts three times.

    A pass that is recomputed in the backward pass (``LoopConfig.activation_checkpointing``) counts once more.

    Args:
        networks: networks to count; those without a trunk are ignored.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self._count = 0
        for network in networks:
            if (trunk := trunk_of(network)) is not None:
                is_trained = any(weight.requires_grad for weight in network.parameters())
                trunk.blocks[0].register_forward_pre_hook(self._trained if is_trained else self._frozen)

    def _trained(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        is_recomputed = torch._C._current_graph_task_id() != -1  # within a backward pass, which is counted already
        self._count += len(args[0]) * (1 + BACKWARD * (torch.is_grad_enabled() and not is_recomputed))

    def _frozen(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._count += len(args[0])

    def reset(self) -> int:
        """Set the count to 0; returns the count before."""
        count, self._count = self._count, 0
        return count
