"""Runs steps of a training job and records the weights and gradients of every optimizer step.

Only this part of the wiring tests depends on the interface of a job: its construction, its networks, and the call of
``torch.nn.utils.clip_grad_norm_`` before each optimizer step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from didi.data.source import Source
from didi.methods.base import Inputs
from didi.methods.didi_settings import DistillConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DistillationConfig
from didi.models.bundle import Bundle
from didi.training.trainer import make_trainer

CPU = torch.device("cpu")
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Update:
    """One optimizer step: trained weights before it, and their gradient before clipping."""

    step: int
    network: str
    weights: Values
    gradient: Values


@dataclass
class Observed:
    """Networks before the first step, the updates in order, and the trained weights after the last step."""

    before: dict[str, nn.Module]
    num_steps: int
    updates: list[Update] = field(default_factory=list)
    after: dict[str, Values] = field(default_factory=dict)

    def of(self, network: str) -> list[Update]:
        """The updates of one network."""
        return [update for update in self.updates if update.network == network]

    def weights_after(self, network: str, number: int) -> Values:
        """Trained weights of a network after its update ``number``."""
        later = [update.weights for update in self.of(network)[number + 1 :]]
        return later[0] if later else self.after[network]


def observe_distillation(config: DistillationConfig, steps: list[int], source: Source, teacher: Bundle, folder: Path):
    """Run ``steps`` of a new distillation.

    Noise is added to student, average and discriminator first: an initial student equals its teacher and its average,
    so that the divergence has no gradient, and the rewards of an initial discriminator are almost constant.
    """
    job = make_trainer(config, Inputs(source, CPU, folder, teacher))
    trained, average = job.method.trained, job.average.module
    others = [network for name, network in trained.items() if name != "student"]
    noisy = [(trained["student"], 0.3), (average, 0.3), *((network, 0.6) for network in others)]
    for seed, (network, scale) in enumerate(noisy):
        _add_noise(network, seed, scale)
    return _observe(job, trained, {**trained, "average": average, "teacher": job.method.teacher}, steps)


def observe_pretraining(config: PretrainConfig, steps: list[int], source: Source):
    """Run ``steps`` of a new pre-training, whose network has random weights in every layer."""
    job = make_trainer(config, Inputs(source, CPU))
    _add_noise(job.method.trained["network"], seed=0, scale=0.3)
    return _observe(job, job.method.trained, job.method.trained, steps)


def distilled(config: DistillConfig, source: Source, teacher: Bundle, folder: Path) -> Bundle:
    """The bundle after all steps of a distillation."""
    return _after_all_steps(make_trainer(config, Inputs(source, CPU, folder, teacher)))


def pretrained(config: PretrainConfig, source: Source) -> Bundle:
    """The bundle after all steps of a pre-training."""
    return _after_all_steps(make_trainer(config, Inputs(source, CPU)))


def _after_all_steps(job) -> Bundle:
    for step in range(job.num_steps):
        job.step(step)
    return job.bundle()


def _observe(job, trained: Mapping[str, nn.Module], networks: Mapping[str, nn.Module], steps: list[int]) -> Observed:
    observed = Observed(copied(networks), job.num_steps)
    clip, current = nn.utils.clip_grad_norm_, 0

    def recorded_clip(parameters, *args, **options):
        parameters = list(parameters)
        names = [name for name, network in trained.items() if any(p is parameters[0] for p in network.parameters())]
        (name,) = names
        gradient = {key: p.grad.clone() for key, p in trained[name].named_parameters() if p.grad is not None}
        observed.updates.append(Update(current, name, _trained_weights(trained[name]), gradient))
        return clip(parameters, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", recorded_clip)
        for current in steps:
            job.step(current)
    observed.after = {name: _trained_weights(network) for name, network in trained.items()}
    return observed


def copied(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies of networks without gradients that share their settings; ten times faster than ``copy.deepcopy``."""
    return {name: _copied(network) for name, network in networks.items()}


def _copied(module: nn.Module) -> nn.Module:
    values = {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}
    for name, parameter in values["_parameters"].items():
        if parameter is not None:
            values["_parameters"][name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    for name, buffer in values["_buffers"].items():
        values["_buffers"][name] = None if buffer is None else buffer.clone()
    for name, part in values["_modules"].items():
        values["_modules"][name] = None if part is None else _copied(part)
    copy: nn.Module = object.__new__(type(module))
    vars(copy).update(values)
    return copy


def _trained_weights(network: nn.Module) -> Values:
    return {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}


@torch.no_grad()
def _add_noise(network: nn.Module, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        size = scale if parameter.ndim == 1 else scale / parameter.shape[-1] ** 0.5
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))
