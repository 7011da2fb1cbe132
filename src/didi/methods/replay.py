"""Samples of the last steps, from which the discriminator learns again while the student has hardly changed (ours)."""

import torch
from jaxtyping import Int
from torch import Tensor

from didi.world import to_device, world


class Replay:
    """Samples of the last ``num_steps`` steps of all processes.

    Args:
        num_steps: how many steps back; 0 keeps none.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._batches: list[Tensor] = []

    def add(self, x: Int[Tensor, "b l"]) -> None:
        """Keep the samples of a step, this process's share of them, and forget the oldest."""
        if self._num_steps:
            self._batches = [*self._batches, world().gathered(x)][-self._num_steps :]

    def draw(self, num_rows: int, generator: torch.Generator) -> Int[Tensor, "n l"]:
        """This process's share of ``num_rows`` samples, drawn with replacement.

        Args:
            num_rows: of all processes.
            generator: a CPU generator.
        """
        samples = torch.cat(self._batches)
        rows = world().mine(torch.randint(len(samples), (num_rows,), generator=generator))
        return samples[to_device(rows, samples.device)]

    def state_dict(self) -> list[Tensor]:
        """The samples, oldest step first."""
        return list(self._batches)

    def load_state_dict(self, state: list[Tensor], device: torch.device) -> None:
        """Back to a state of ``state_dict``."""
        self._batches = [samples.to(device) for samples in state]
