"""The published form of ancestral sampling of uniform-state diffusion, as a reference.

Every move computes the posterior of all symbols at all positions in float64, and a Gumbel variate for each (UDLM,
https://arxiv.org/abs/2412.10193; Duo, https://arxiv.org/abs/2506.10892). In ``float64`` samples have the distribution
of ``UniformAncestral``; in ``float32`` the noise has the bias described in ``published``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import Precision, sample_gumbel
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.uniform import Uniform
from didi.models.denoiser import Denoiser
from didi.sampling.base import StepOutput, alpha_at, features_at
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution


@dataclass(frozen=True)
class PublishedUniform:
    """The published sampler of a denoiser.

    Attributes:
        denoiser: the network.
        process: uniform-state diffusion.
        token_distribution: temperature and top-p of the predicted clean token.
        precision: precision of the noise and of the probabilities when they are drawn from.
    """

    denoiser: Denoiser
    process: Uniform
    token_distribution: TokenDistribution = UNMODIFIED
    precision: Precision = "float32"

    @torch.inference_mode()
    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``."""
        passes, no_passes = canvas.is_free.any(1).long().cpu(), torch.zeros(len(canvas), dtype=torch.long)
        z = self.process.prior(canvas, noise.uniforms(canvas.length, self.process.draws_per_position, positions=0))
        dtype = getattr(torch, self.precision)
        for t, s in pairwise(times):
            before, rates = z, [float(alpha_at(self.process.schedule, time)) for time in (t, s)]
            # Several tensors of [b, l, v]: each is freed as soon as it is not needed.
            logits = self.denoiser.head(features_at(self.denoiser, self.process, z, t, canvas.attention_mask))
            logits = self.token_distribution.log_probs(logits.flatten(0, 1), None)
            weights = self.process.reverse_weights(logits, z.flatten(), *rates).to(dtype).log_()
            del logits
            uniforms = noise.uniforms(canvas.length, self.process.vocab_size, dtype=dtype, positions=0).flatten(0, 1)
            z = torch.where(canvas.is_free, sample_gumbel(weights, uniforms).view_as(z), z)
            del weights, uniforms
            yield StepOutput(z, float(s), z != before, passes, no_passes)
