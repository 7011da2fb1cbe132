"""Samplers as generators that request network passes, so that several samplers can share a pass.

The result of a trunk pass depends on its input rows only, not on the sampler, the move or the seed. A sampler is
written once, as a generator: it yields a ``TrunkPass`` when it needs features and receives them by ``send``; it yields
a ``TokenDraw`` when it needs tokens drawn from features; it yields a ``StepOutput`` after every move.
``unshared_moves`` answers each request at once. A server collects the requests of many samplers and answers them
together.
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
    """A request for ``Denoiser.features``.

    Attributes:
        inputs: token ids.
        t: time of the inputs, one for all rows or one for each.
        attention_mask: False at padding; None where all positions are real.
        codes: latent code of each position; None for a network that reads none.
    """

    inputs: Int[Tensor, "r l"]
    t: Float[Tensor, "*r"]
    attention_mask: Bool[Tensor, "r l"] | None = None
    codes: Int[Tensor, "r l"] | None = None


@dataclass(frozen=True)
class TokenDraw:
    """A request for a token drawn from each row of features.

    Attributes:
        features: trunk features.
        uniforms: uniform number of each row, in [0, 1).
    """

    features: Float[Tensor, "n d"]
    uniforms: Float[Tensor, " n"]


Passes = Generator[TrunkPass | TokenDraw | StepOutput, Tensor | None, None]
"""A run of a sampler. It receives features ``[r, l, d]`` after each ``TrunkPass``, tokens ``[n]`` after each
``TokenDraw``, and None after each ``StepOutput``."""


@runtime_checkable
class PassSampler(Protocol):
    """A ``base.Sampler`` whose network passes can be shared with other samplers."""

    @property
    def denoiser(self) -> Denoiser:
        """The network whose features are requested."""
        ...

    @property
    def process(self) -> Process:
        """The process, which maps times to noise levels."""
        ...

    @property
    def token_distribution(self) -> TokenDistribution:
        """Temperature and top-p of the tokens of a ``TokenDraw``."""
        ...

    def passes(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Passes:
        """The run of a batch; arguments are those of ``base.Sampler.__call__``."""
        ...


def received(answer: Tensor | None) -> Tensor:
    """The tensor that a run receives for a ``TrunkPass`` or a ``TokenDraw``; narrows its type."""
    assert answer is not None
    return answer


@torch.inference_mode()
def unshared_moves(
    sampler: PassSampler, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise
) -> Iterator[StepOutput]:
    """The moves of a batch, whose passes are run at once and not shared."""
    run, answer, denoiser, process = sampler.passes(canvas, times, noise), None, sampler.denoiser, sampler.process
    while True:
        try:
            request = run.send(answer)
        except StopIteration:
            return
        answer = None
        if isinstance(request, StepOutput):
            yield request
        elif isinstance(request, TokenDraw):
            answer = sampler.token_distribution.sample(
                denoiser.head(request.features), process.mask_id, request.uniforms
            )
        else:
            answer = features_at(denoiser, process, request.inputs, request.t, request.attention_mask, request.codes)
