"""Optimizer, learning-rate schedule and averaged weights."""

import math
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from didi.methods.settings import OptimizerConfig
from didi.models.adapters import copy_sharing_frozen
from didi.models.autoregressive import AutoregressiveLM
from didi.models.dit import DiT
from didi.training.distributed import is_sharded
from didi.training.muon import Muon

_HIDDEN_MATRIX = re.compile(r"blocks\.\d+\.(attn_|mlp\.)|\.h\.\d+\.")  # of our transformer, and of GPT-2


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """The configured optimizer on the trainable parameters; weight decay on matrices only.

    Muon takes the matrices of the blocks, conditioning excepted; embedding and head stay with AdamW.
    """
    trainable = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    hidden = [
        name
        for name, parameter in trainable.items()
        if config.method == "muon" and parameter.ndim == 2 and _HIDDEN_MATRIX.search(name)
    ]
    rest = [parameter for name, parameter in trainable.items() if name not in hidden]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW
    if hidden:
        kind = Muon
        matrices = {"params": [trainable[name] for name in hidden], "weight_decay": config.weight_decay}
        groups.append(matrices | {"is_muon": True, "rate_scale": config.muon_rate_scale})
    return kind(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), foreach=True)


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Rate of update ``step`` (from 0) in a run of ``num_steps`` updates."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps))
    remaining = (1 + math.cos(math.pi * progress)) / 2 if config.decay == "cosine" else 1 - progress
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * remaining)


def update(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: OptimizerConfig,
    rate: float,
    *,
    is_finite: bool = True,
) -> Tensor:
    """Clip the gradients, step at ``rate`` and clear the gradients.

    Weights and moments stay as they are where ``is_finite`` is off or the gradient is not finite.

    Returns:
        Norm of the gradient before clipping; NaN where ``is_finite`` is off.
    """
    norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    norm = cast(Any, norm).full_tensor() if is_sharded(norm) else norm
    if not is_finite:
        norm = torch.full_like(norm, math.nan)
    if torch.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("rate_scale", 1.0)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def averaged(network: nn.Module, decay: float, *, is_ramped: bool = True) -> AveragedModel:
    """Exponential moving average of a network's weights.

    Unless ``is_ramped`` is off, the decay is ramped as (1 + n) / (10 + n), so that the average of a short run is
    not that of its first weights. Frozen weights are shared
    with ``network``, not copied.
    """

    @torch.no_grad()
    def ramped_average(averages: Sequence[Tensor], currents: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        num = int(num_averaged)
        weight = 1 - (min(decay, (1 + num) / (10 + num)) if is_ramped else decay)
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, weight)
            else:
                average.copy_(current)

    average = AveragedModel(nn.Identity(), multi_avg_fn=ramped_average, use_buffers=False)
    average.module = copy_sharing_frozen(network)  # its own way is a copy of all
    return average


def averaged_network(average: AveragedModel) -> DiT | AutoregressiveLM:
    """The network that holds the averaged weights, in eval mode."""
    return cast(DiT | AutoregressiveLM, average.module.eval())
