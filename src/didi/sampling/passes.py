"""Samplers that ask for the passes of their network instead of making them, so that several can share a pass.

A pass of the trunk depends on the rows that it reads, and not on the sampler, the move or the seed that they come from.
A sampler is written once, as a generator that yields a ``TrunkPass`` wherever it needs features, is sent those, and
yields a ``StepOutput`` after every move. ``moves_alone`` answers each pass at once; a server collects those of many
samplers and answers them together.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.models.denoiser import Denoiser
from didi.sampling.base import StepOutput, features_at


@dataclass(frozen=True)
class TrunkPass:
    """What a sampler wants ``Denoiser.features`` of.

    Attributes:
        inputs: token ids.
        t: their time, one for all rows or one for each.
        attention_mask: False at padding; None where all positions are real.
    """

    inputs: Int[Tensor, "r l"]
    t: Float[Tensor, "*r"]
    attention_mask: Bool[Tensor, "r l"] | None = None


Passes = Generator[TrunkPass | StepOutput, Tensor | None, None]
"""A run of a sampler, which is sent features ``[r, l, d]`` after each ``TrunkPass``, None after each ``StepOutput``."""


@runtime_checkable
class PassSampler(Protocol):
    """A sampler whose passes can be shared with others; it is a ``base.Sampler`` too."""

    @property
    def denoiser(self) -> Denoiser:
        """The network whose features it asks for."""
        ...

    @property
    def process(self) -> Process:
        """The process that has the noise level of a time."""
        ...

    def passes(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Passes:
        """The run of a batch; arguments as of ``base.Sampler.__call__``."""
        ...


def sent(features: Tensor | None) -> Tensor:
    """What a run is sent in answer to a ``TrunkPass``."""
    assert features is not None
    return features


@torch.inference_mode()
def moves_alone(
    sampler: PassSampler, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise
) -> Iterator[StepOutput]:
    """The moves of a batch whose passes are shared with no other."""
    run, features = sampler.passes(canvas, times, noise), None
    while True:
        try:
            asked = run.send(features)
        except StopIteration:
            return
        features = None
        if isinstance(asked, StepOutput):
            yield asked
        else:
            features = features_at(sampler.denoiser, sampler.process, asked.inputs, asked.t, asked.attention_mask)
