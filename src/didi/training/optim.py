"""Optimizer, learning-rate schedule and averaged weights."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from didi.models.dit import DiT
from didi.training.config import OptimizerConfig


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW on the trainable parameters; weight decay on matrices only."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), foreach=True)


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Rate of update ``step`` (from 0) in a run of ``num_steps`` updates."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps))
    remaining = (1 + math.cos(math.pi * progress)) / 2 if config.decay == "cosine" else 1 - progress
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * remaining)


def update(network: nn.Module, optimizer: torch.optim.Optimizer, config: OptimizerConfig, rate: float) -> Tensor:
    """Clip the gradients, step at ``rate``, clear them; returns the gradient's norm before clipping.

    A gradient that is not finite leaves the weights as they are: the norm tells.
    """
    norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    if torch.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def averaged(network: nn.Module, decay: float, *, is_ramped: bool = True) -> AveragedModel:
    """Exponential moving average of a network's weights.

    Unless ``is_ramped`` is off, the decay is ramped as (1 + n) / (10 + n), so that the average of a short run is
    not that of its first weights.
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

    return AveragedModel(network, multi_avg_fn=ramped_average, use_buffers=False)


def averaged_network(average: AveragedModel) -> DiT:
    """The network that holds the averaged weights, in eval mode."""
    return cast(DiT, average.module.eval())
