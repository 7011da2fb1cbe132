"""Features of sequences in a frozen network: the points that a kernel between sequences compares."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from didi.diffusion import Process
from didi.methods.mmd_settings import MmdObjective
from didi.models.networks import DenoiserNetwork
from didi.objectives.mmd import mean_kernel, sequence_kernel
from didi.process_group import ProcessGroup

Points = list[Float[Tensor, "n l d"]]


def layers_of(objective: MmdObjective, num_blocks: int) -> tuple[int, ...]:
    """Blocks after which features are read, from 1."""
    return objective.layers or (max(1, round(num_blocks / 3)),)


@torch.no_grad()
def hidden_states(
    network: DenoiserNetwork, layers: Sequence[int], z: Int[Tensor, "n l"], sigma: Float[Tensor, " n"] | None
) -> Points:
    """Outputs of the blocks numbered, from 1, in float32."""
    found: dict[int, Tensor] = {}

    def keep(layer: int, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found[layer] = output.float()

    handles = [network.blocks[layer - 1].register_forward_hook(partial(keep, layer)) for layer in layers]
    try:
        network.features(z, sigma)
    finally:
        for handle in handles:
            handle.remove()
    return [found[layer] for layer in layers]


def sequence_features(
    network: DenoiserNetwork,
    process: Process,
    objective: MmdObjective,
    rows: Int[Tensor, "n l"],
    generator: torch.Generator,
    processes: ProcessGroup,
) -> Points:
    """Features of clean sequences, one tensor for each layer at each of ``objective.feature_times``.

    Args:
        network: the frozen one.
        process: of its inputs.
        objective: which features.
        rows: the sequences.
        generator: of the corruptions, a CPU generator; unused at time 0.
        processes: each of which has as many rows of its own; ``ProcessGroup()`` where all have the same.
    """
    layers, found = layers_of(objective, len(network.blocks)), []
    for time in objective.feature_times:
        t, z = torch.full((len(rows),), time, dtype=torch.float64, device=rows.device), rows
        if time:
            shape = (*rows.shape, process.draws_per_position)
            draws = torch.rand(processes.size, *shape, dtype=torch.float64, generator=generator)
            z = process.corrupt(rows, t, draws[processes.rank].to(rows.device))
        found += hidden_states(network, layers, z, process.noise_level(network, t))
    return found


def pooled(
    objective: MmdObjective, points: Float[Tensor, "s n l d"], is_scored: Bool[Tensor, "s l"] | None
) -> tuple[Float[Tensor, "s n p e"], Float[Tensor, "s n p"] | None]:
    """Points of each sequence and their weights, for the scored positions of its state.

    Args:
        objective: ``features``.
        points: of all positions.
        is_scored: which positions count; None for all.
    """
    if objective.features == "concatenated":
        counted = points if is_scored is None else points * is_scored[:, None, :, None]
        return counted.flatten(2)[:, :, None], None
    weights = None
    if is_scored is not None:
        weights = is_scored / is_scored.sum(1, keepdim=True).clamp(min=1)
        weights = weights[:, None].expand(points.shape[:3]).to(points.dtype)
    if objective.features == "token":
        return points, weights
    mean = points.mean(2) if weights is None else (points * weights[..., None]).sum(2)
    return mean[:, :, None], None


def kernel_of(
    objective: MmdObjective,
    first: Sequence[Float[Tensor, "s n l d"]],
    second: Sequence[Float[Tensor, "s m l d"]],
    scales: Float[Tensor, " f"],
    is_scored: Bool[Tensor, "s l"] | None = None,
) -> Float[Tensor, "s n m"]:
    """Kernel of every pair of sequences of a state, the mean over kinds of features.

    Args:
        objective: features and bandwidths.
        first: features of the rows, of each kind.
        second: features of the columns.
        scales: median distance of each kind.
        is_scored: positions that count in each state; None for all.
    """
    kernels = []
    for scale, one, other in zip(scales, first, second, strict=True):
        bandwidths = scale * torch.tensor(objective.bandwidths, device=scale.device)
        rows, row_weights = pooled(objective, one, is_scored)
        columns, column_weights = pooled(objective, other, is_scored)
        kernels.append(sequence_kernel(rows, columns, bandwidths, row_weights, column_weights))
    return mean_kernel(kernels)
