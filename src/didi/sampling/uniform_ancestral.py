"""Ancestral sampling of uniform-state diffusion (UDLM, Schiff et al. 2025): every token may change in a move."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_categorical
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.uniform import Uniform
from didi.models.denoiser import Denoiser
from didi.sampling.base import StepOutput, features_at
from didi.sampling.departure import EXACT, Departure

ROWS = 1024  # positions whose distributions over the vocabulary exist at the same time


@dataclass(frozen=True)
class UniformAncestral:
    """Ancestral sampler of a denoiser; float64 draws.

    Attributes:
        denoiser: the network.
        process: uniform-state diffusion.
        departure: temperature and top-p of the predicted clean token.
    """

    denoiser: Denoiser
    process: Uniform
    departure: Departure = EXACT

    @torch.inference_mode()
    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``."""
        passes, none = canvas.is_free.any(1).long().cpu(), torch.zeros(len(canvas), dtype=torch.long)
        z = self.process.prior(canvas, noise.uniforms(canvas.length, self.process.draws_per_position))
        for t, s in pairwise(times):
            features = features_at(self.denoiser, self.process, z, t, canvas.attention_mask)[canvas.is_free]
            uniforms, before = noise.uniforms(canvas.length)[canvas.is_free], z
            z = z.masked_scatter(canvas.is_free, self._drawn(features, z[canvas.is_free], t, s, uniforms))
            yield StepOutput(z, float(s), z != before, passes, none)

    def _drawn(
        self,
        features: Float[Tensor, "n d"],
        tokens: Int[Tensor, " n"],
        t: Float[Tensor, ""],
        s: Float[Tensor, ""],
        uniforms: Float[Tensor, " n"],
    ) -> Int[Tensor, " n"]:
        """A token of z_s for each position, a part at a time."""
        drawn = [torch.empty_like(tokens[:0])]
        t, s = (time.to(tokens.device)[None] for time in (t, s))
        for rows, state, draws in zip(features.split(ROWS), tokens.split(ROWS), uniforms.split(ROWS), strict=True):
            log_probs = self.departure.log_probs(self.denoiser.head(rows), None).double()
            probs = self.process.posterior(state[None], log_probs[None], t, s)[0]
            drawn.append(sample_categorical(probs.log(), draws))
        return torch.cat(drawn)
