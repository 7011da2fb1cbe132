"""Optimizer, learning-rate schedule and averaged weights."""

import math
import re
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from didi.methods.settings import OptimizerConfig
from didi.models.adapters import copy_sharing_frozen
from didi.models.autoregressive import AutoregressiveLM
from didi.models.networks import DenoiserNetwork
from didi.training.distributed import is_sharded
from didi.training.muon import Muon

_HIDDEN_MATRIX = re.compile(r"blocks\.\d+\.(attn_|mlp\.)|\.h\.\d+\.")  # of ``DiTTrunk`` and of GPT-2


def make_optimizer(
    network: nn.Module, config: OptimizerConfig, iteration_dtype: torch.dtype = torch.float32
) -> torch.optim.AdamW:
    """The optimizer of ``config`` for the trainable parameters, with weight decay on matrices only.

    Muon updates the matrices of the blocks except those of the conditioning, with iterations in ``iteration_dtype``;
    AdamW updates all other parameters. On a CUDA device AdamW is fused, and can skip a step without a host
    synchronisation.
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
    is_fused = is_on_cuda(network)
    implementation = {"fused": True} if is_fused else {"foreach": True}
    optimizer = kind(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), **implementation)
    if isinstance(optimizer, Muon):
        optimizer.iteration_dtype = iteration_dtype
    return optimizer


def is_on_cuda(network: nn.Module) -> bool:
    """Whether the weights of a network are on a CUDA device."""
    return next(network.parameters()).device.type == "cuda"


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Learning rate of update ``step``, from 0, in a run of ``num_steps`` updates."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps))
    remaining = (1 + math.cos(math.pi * progress)) / 2 if config.decay == "cosine" else 1 - progress
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * remaining)


def clip_and_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: OptimizerConfig,
    rate: float,
    *,
    is_finite: bool | Tensor = True,
) -> Tensor:
    """Clip the gradients, step with learning rate ``rate``, and clear the gradients.

    Weights and moments do not change if ``is_finite`` is False or the gradient is not finite.

    Args:
        network: network with the gradients.
        optimizer: optimizer of the network; fused, or ``Muon``, if ``is_finite`` is a tensor.
        config: settings of the optimizer.
        rate: learning rate.
        is_finite: whether the losses are finite; with a 0-dim tensor the host does not wait for the decision.

    Returns:
        Norm of the gradient before clipping; NaN if ``is_finite`` is False.
    """
    norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    norm = cast(Any, norm).full_tensor() if is_sharded(norm) else norm
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)
    if isinstance(is_finite, Tensor):
        norm = norm.where(is_finite, math.nan)
        optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        optimizer.step()
    else:
        norm = norm if is_finite else torch.full_like(norm, math.nan)
        if torch.isfinite(norm):
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


class Average(AveragedModel):
    """Exponential moving average of a network's weights.

    Args:
        network: averaged network; its frozen weights are shared, not copied.
        decay: decay of the average.
        is_ramped: whether the decay of update n is at most (1 + n) / (10 + n), so that initial weights do not dominate
            in short runs.
    """

    def __init__(self, network: nn.Module, decay: float, *, is_ramped: bool = True) -> None:
        super().__init__(nn.Identity(), use_buffers=False)
        self.module = copy_sharing_frozen(network)  # AveragedModel would copy all weights
        self._decay, self._is_ramped = decay, is_ramped

    def _weight(self, num: int) -> float:
        """Weight of the current network in update number ``num`` of the average, from 0."""
        decay = min(self._decay, (1 + num) / (10 + num)) if self._is_ramped else self._decay
        return 1 - decay if num else 1.0

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, is_changed: bool | Tensor = True) -> None:
        """Update the average with the weights of ``model``.

        Args:
            model: the network; its buffers are copied.
            is_changed: whether its weights have changed, a bool or a 0-dim tensor; if not, the averaged weights and the
                number of updates stay the same. The weights must be finite in any case.
        """
        weight: float | Tensor
        if isinstance(is_changed, Tensor):
            self.n_averaged = self.n_averaged.to(is_changed.device, non_blocking=True)
            # As ``_weight``, on the device.
            min_weight = torch.full_like(self.n_averaged, 1 - self._decay, dtype=torch.float32)
            ramped = torch.maximum(min_weight, 9 / (10.0 + self.n_averaged)) if self._is_ramped else min_weight
            weight = ramped.where(self.n_averaged > 0, 1.0) * is_changed
        else:
            weight = self._weight(int(self.n_averaged)) * is_changed
        for average, current in zip(self.module.parameters(), model.parameters(), strict=True):
            if average is not current:
                average.lerp_(current.detach(), weight)
        for average_buffer, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            average_buffer.copy_(buffer)
        self.n_averaged += is_changed


def averaged_network(average: Average) -> DenoiserNetwork | AutoregressiveLM:
    """The network that holds the averaged weights, in eval mode."""
    return cast(DenoiserNetwork | AutoregressiveLM, average.module.eval())
