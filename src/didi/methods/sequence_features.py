"""Features of sequences in a frozen network, the points of the kernel between sequences."""

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
    """Numbers of the blocks whose outputs are features, from 1."""
    return objective.layers or (max(1, round(num_blocks / 3)),)


@torch.no_grad()
def hidden_states(
    network: DenoiserNetwork, layers: Sequence[int], z: Int[Tensor, "n l"], sigma: Float[Tensor, " n"] | None
) -> Points:
    """Outputs of the blocks ``layers``, numbered from 1, in float32."""
    outputs: dict[int, Tensor] = {}

    def keep(layer: int, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs[layer] = output.float()

    handles = [network.blocks[layer - 1].register_forward_hook(partial(keep, layer)) for layer in layers]
    try:
        network.features(z, sigma)
    finally:
        for handle in handles:
            handle.remove()
    return [outputs[layer] for layer in layers]


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
        network: the frozen network.
        process: process of its inputs.
        objective: choice of features.
        rows: the sequences.
        generator: CPU generator of the corruptions; unused at time 0.
        processes: group whose processes have different rows, equally many; ``ProcessGroup()`` if all have the same.
    """
    layers, features = layers_of(objective, len(network.blocks)), []
    for time in objective.feature_times:
        t, z = torch.full((len(rows),), time, dtype=torch.float64, device=rows.device), rows
        if time:
            shape = (*rows.shape, process.draws_per_position)
            draws = torch.rand(processes.size, *shape, dtype=torch.float64, generator=generator)
            z = process.corrupt(rows, t, draws[processes.rank].to(rows.device))
        features += hidden_states(network, layers, z, process.noise_level(network, t))
    return features


def pooled(
    objective: MmdObjective, points: Float[Tensor, "s n l d"], is_scored: Bool[Tensor, "s l"] | None
) -> tuple[Float[Tensor, "s n p e"], Float[Tensor, "s n p"] | None]:
    """The points of each sequence, from the features of its scored positions, and their weights.

    Args:
        objective: its ``features`` name the kind of points.
        points: features of all positions.
        is_scored: positions that are compared; None for all.
    """
    if objective.features == "concatenated":
        scored = points if is_scored is None else points * is_scored[:, None, :, None]
        return scored.flatten(2)[:, :, None], None
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
    """Kernel of every pair of sequences of a state, the mean over kinds of features (layers and times).

    Args:
        objective: features and bandwidths.
        first: features of the rows of the kernel matrix, one tensor for each kind.
        second: features of its columns.
        scales: median distance for each kind.
        is_scored: positions of each state that are compared; None for all.
    """
    kernels = []
    for scale, row_features, column_features in zip(scales, first, second, strict=True):
        bandwidths = scale * torch.tensor(objective.bandwidths, device=scale.device)
        rows, row_weights = pooled(objective, row_features, is_scored)
        columns, column_weights = pooled(objective, column_features, is_scored)
        kernels.append(sequence_kernel(rows, columns, bandwidths, row_weights, column_weights))
    return mean_kernel(kernels)
