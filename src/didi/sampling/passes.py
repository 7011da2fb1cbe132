"""Samplers that ask for the passes of their network instead of making them, so that several can share a pass.

A pass of the trunk depends on the rows that it reads, and not on the sampler, the move or the seed that they come from.
A sampler is written once, as a generator that yields a ``TrunkPass`` wherever it needs features, is sent those, and
yields a ``StepOutput`` after every move. Where it wants nothing but tokens from some of the features, it yields a
``TokenDraw`` too. ``moves_alone`` answers each request at once; a server collects those of many samplers and answers
them together.
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
from didi.sampling.token_distribution import TokenDistribution


@dataclass(frozen=True)
class TrunkPass:
    """What a sampler wants ``Denoiser.features`` of.

    Attributes:
        inputs: token ids.
        t: their time, one for all rows or one for each.
        attention_mask: False at padding; None where all positions are real.
        codes: latent code of each position; None for a network that reads none.
    """

    inputs: Int[Tensor, "r l"]
    t: Float[Tensor, "*r"]
    attention_mask: Bool[Tensor, "r l"] | None = None
    codes: Int[Tensor, "r l"] | None = None


@dataclass(frozen=True)
class TokenDraw:
    """Rows of features of which a sampler wants a token each, drawn by the sampler.

    Attributes:
        features: rows.
        uniforms: for each, in [0, 1).
    """

    features: Float[Tensor, "n d"]
    uniforms: Float[Tensor, " n"]


Passes = Generator[TrunkPass | TokenDraw | StepOutput, Tensor | None, None]
"""A run of a sampler, which is sent features ``[r, l, d]`` after each ``TrunkPass``, tokens ``[n]`` after each
``TokenDraw``, and None after each ``StepOutput``."""


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

    @property
    def token_distribution(self) -> TokenDistribution:
        """What the tokens of a ``TokenDraw`` are drawn by."""
        ...

    def passes(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Passes:
        """The run of a batch; arguments as of ``base.Sampler.__call__``."""
        ...


def sent(answer: Tensor | None) -> Tensor:
    """What a run is sent in answer to a ``TrunkPass`` or a ``TokenDraw``."""
    assert answer is not None
    return answer


@torch.inference_mode()
def moves_alone(
    sampler: PassSampler, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise
) -> Iterator[StepOutput]:
    """The moves of a batch whose passes are shared with no other."""
    run, answer, denoiser, process = sampler.passes(canvas, times, noise), None, sampler.denoiser, sampler.process
    while True:
        try:
            asked = run.send(answer)
        except StopIteration:
            return
        answer = None
        if isinstance(asked, StepOutput):
            yield asked
        elif isinstance(asked, TokenDraw):
            answer = sampler.token_distribution.sample(denoiser.head(asked.features), process.mask_id, asked.uniforms)
        else:
            answer = features_at(denoiser, process, asked.inputs, asked.t, asked.attention_mask, asked.codes)
