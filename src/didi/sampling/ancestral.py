"""Ancestral sampling, Eq. 10 with h = 0, without the work that cannot change a sample.

Which positions a move reveals does not depend on their tokens, so positions are drawn first; the network runs only for
sequences that reveal something, its head only on the revealed rows, and each row takes one uniform. The first state is
the same for all sequences: one row of the network serves the batch. All of it is exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion.categorical import Precision, sample_categorical, sample_gumbel
from didi.diffusion.masked import is_masked_at, posterior_probs, subs_log_probs, token_log_probs
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import Schedule, sigma
from didi.models.denoiser import Denoiser, noise_level
from didi.sampling.base import StepOutput, alpha_at, shared_rows


def features_of(
    denoiser: Denoiser, z: Int[Tensor, "b l"], t: Float[Tensor, ""], schedule: Schedule
) -> Float[Tensor, "b l d"]:
    """Trunk features of each row at time ``t``; computed once where all rows are equal."""
    rows = shared_rows(z)
    level = noise_level(denoiser, sigma(schedule, t.to(z.device).expand(rows.shape[0])).float())
    return denoiser.features(rows, level).expand(z.shape[0], -1, -1)


@dataclass(frozen=True)
class Ancestral:
    """Ancestral sampler of a denoiser.

    Attributes:
        denoiser: the network.
        precision: ``float64`` is exact. ``float32`` repeats the published algorithm (Gumbel noise in single precision
            over vocabulary and mask, at every masked position, every move), whose rare tokens are lost.
        temperature: divides the logits; 1 is exact, another value is a recorded departure.
    """

    denoiser: Denoiser
    precision: Precision = "float64"
    temperature: float = 1.0

    @torch.inference_mode()
    def __call__(
        self, z: Int[Tensor, "b l"], times: Float[Tensor, " n"], schedule: Schedule, noise: SequenceNoise
    ) -> Iterator[StepOutput]:
        """See ``base.Sampler``."""
        mask_id = self.denoiser.mask_id
        no_passes = torch.zeros(z.shape[0], dtype=torch.long)
        reveal_uniforms = noise.uniforms(z.shape[1])
        for t, s in pairwise(times):
            is_masked = z == mask_id
            if self.precision == "float32":
                is_active, z_next = is_masked.any(1), self._published_move(z, t, s, schedule, noise)
            else:
                stays = is_masked_at(reveal_uniforms, alpha_at(schedule, s).expand(z.shape[0]).to(z.device))
                is_revealed = is_masked & ~stays
                is_active, z_next = is_revealed.any(1), z
                if is_active.any():
                    z_next = self._reveal(z, is_revealed, is_active, t, schedule, noise)
            yield StepOutput(z_next, float(s), z_next != z, is_active.long().cpu(), no_passes)
            z = z_next

    def _reveal(
        self,
        z: Int[Tensor, "b l"],
        is_revealed: Bool[Tensor, "b l"],
        is_active: Bool[Tensor, " b"],
        t: Float[Tensor, ""],
        schedule: Schedule,
        noise: SequenceNoise,
    ) -> Int[Tensor, "b l"]:
        features = features_of(self.denoiser, z[is_active], t, schedule)[is_revealed[is_active]]
        log_probs = token_log_probs(self.denoiser.head(features) / self.temperature, self.denoiser.mask_id)
        active = is_active.nonzero().squeeze(1).tolist()
        uniforms = noise.uniforms(z.shape[1], rows=active)[is_revealed[is_active]]
        z = z.clone()
        z[is_revealed] = sample_categorical(log_probs, uniforms)
        return z

    def _published_move(
        self,
        z: Int[Tensor, "b l"],
        t: Float[Tensor, ""],
        s: Float[Tensor, ""],
        schedule: Schedule,
        noise: SequenceNoise,
    ) -> Int[Tensor, "b l"]:
        logits = self.denoiser.head(features_of(self.denoiser, z, t, schedule)) / self.temperature
        probs = subs_log_probs(logits, z, self.denoiser.mask_id).exp()
        alpha_s, alpha_t = (alpha_at(schedule, time).float().expand(z.shape[0]).to(z.device) for time in (s, t))
        mixed = posterior_probs(z, probs, alpha_s, alpha_t, self.denoiser.mask_id)
        uniforms = noise.uniforms(*mixed.shape[1:], dtype=torch.float32)
        drawn = sample_gumbel(mixed.flatten(0, 1).log(), uniforms.flatten(0, 1)).view_as(z)
        return torch.where(z == self.denoiser.mask_id, drawn, z)
