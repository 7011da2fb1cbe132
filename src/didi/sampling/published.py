"""The published form of ancestral sampling: all logits in every move, and a Gumbel variate for each logit.

It serves as a reference. In ``float32`` it has the bias of published numbers: with single-precision noise rare tokens
are never drawn, so perplexity and entropy both fall (Zheng et al. 2025, https://arxiv.org/abs/2409.02908). In
``float64`` it has the same distribution as ``Ancestral``, at several times the cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion.absorbing import Absorbing, posterior_probs, subs_log_probs
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import Precision, sample_gumbel
from didi.diffusion.noise import SequenceNoise
from didi.models.denoiser import Denoiser
from didi.sampling.base import StepOutput, features_at, open_positions, path_alphas
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution


@dataclass(frozen=True)
class Published:
    """The published sampler of a denoiser (MDLM, Sahoo et al. 2024).

    Attributes:
        denoiser: the network.
        process: masked diffusion.
        token_distribution: temperature and top-p.
        precision: precision of probabilities and noise.
    """

    denoiser: Denoiser
    process: Absorbing
    token_distribution: TokenDistribution = UNMODIFIED
    precision: Precision = "float32"

    @torch.inference_mode()
    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``."""
        z, mask_id = self.process.prior(canvas), self.process.mask_id
        no_passes = torch.zeros(len(canvas), dtype=torch.long)
        dtype = getattr(torch, self.precision)
        alphas = path_alphas(self.process.schedule, times).to(z.device, dtype)[:, None].expand(-1, len(z))
        for move, (t, s) in enumerate(pairwise(times)):
            is_masked = open_positions(self.process, z, canvas)
            # Several tensors of [b, l, v]: each is freed as soon as it is not needed.
            probs = self.denoiser.head(features_at(self.denoiser, self.process, z, t, canvas.attention_mask))
            probs = self.token_distribution.log_probs(probs.flatten(0, 1), mask_id).view_as(probs)
            probs = subs_log_probs(probs, z, mask_id).to(dtype).exp_()
            probs = posterior_probs(z, probs, alphas[move + 1], alphas[move], mask_id).flatten(0, 1).log_()
            uniforms = noise.uniforms(z.shape[1], probs.shape[-1], dtype=dtype, positions=0).flatten(0, 1)
            z = torch.where(is_masked, sample_gumbel(probs, uniforms).view_as(z), z)
            del probs, uniforms
            yield StepOutput(z, float(s), is_masked & (z != mask_id), is_masked.any(1).long().cpu(), no_passes)
