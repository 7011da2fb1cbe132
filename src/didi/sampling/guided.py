"""The reward-guided ancestral sampler (RGAS), Algorithm 2.

Over the first moves the student's logits are tilted along the gradient of the reward; over the last ones several
candidates are drawn and one is chosen by its reward. The reward is minus the student-over-teacher log-ratio of the
discriminator: guidance moves samples towards the teacher (the paper's Eq. 11 has the other sign, which is worse than
no guidance).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from didi.diffusion.categorical import sample_categorical
from didi.diffusion.masked import reveal_probability, token_log_probs
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import Schedule, sigma
from didi.errors import UsageError
from didi.models.denoiser import Denoiser
from didi.models.discriminator import Discriminator, log_ratio_logits
from didi.objectives.didi import RewardReduction, log_density_ratio
from didi.sampling.ancestral import features_of
from didi.sampling.base import StepOutput, alpha_at


@dataclass(frozen=True)
class Guidance:
    """Settings of RGAS; defaults are the paper's (App. F.3) where our own measurements do not speak against them.

    Attributes:
        guidance_scale: h of the last tilted move; it rises linearly from 0 at the first (a single one has 0).
        tilted_fraction: share of the moves that are tilted, the first ones; half in the paper. Re-ranking the early
            moves, which reveal most, gains far more than tilting them (docs/lab-notes.md).
        gradient_clamp: bound on each entry of the gradient before it is scaled.
        num_candidates: M candidates in each of the remaining moves.
        reduction: how the discriminator's logits become one reward for re-ranking.
        rank_temperature: temperature of the softmax over candidates.
        select: ``sample`` from that softmax (Eq. 11), or take the ``best`` (App. F.3).
    """

    guidance_scale: float = 30.0
    tilted_fraction: float = 0.25
    gradient_clamp: float = 1.0
    num_candidates: int = 4
    reduction: RewardReduction = "sum"
    rank_temperature: float = 1.0
    select: Literal["sample", "best"] = "sample"

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise UsageError(f"num_candidates is 1 or more; got {self.num_candidates}")
        if not 0 <= self.tilted_fraction <= 1:
            raise UsageError(f"tilted_fraction lies in [0, 1]; got {self.tilted_fraction}")
        if not self.rank_temperature > 0:
            raise UsageError(f"rank_temperature is positive; got {self.rank_temperature}")
        if not self.gradient_clamp >= 0:
            raise UsageError(f"gradient_clamp is 0 or more; got {self.gradient_clamp}")

    def scales(self, num_moves: int) -> list[float]:
        """The tilt h of each tilted move, from 0 to ``guidance_scale``."""
        num_tilted = round(self.tilted_fraction * num_moves)
        return torch.linspace(0, self.guidance_scale, num_tilted).tolist()


@dataclass(frozen=True)
class Guided:
    """RGAS for a denoiser and the discriminator it was trained with; float64 draws."""

    denoiser: Denoiser
    discriminator: Discriminator
    guidance: Guidance = Guidance()
    temperature: float = 1.0

    @torch.no_grad()
    def __call__(
        self, z: Int[Tensor, "b l"], times: Float[Tensor, " n"], schedule: Schedule, noise: SequenceNoise
    ) -> Iterator[StepOutput]:
        """See ``base.Sampler``."""
        scales = self.guidance.scales(len(times) - 1)
        for move, (t, s) in enumerate(pairwise(times)):
            if move < len(scales):
                z_next, is_active, num_scored = self._tilted_move(z, t, s, schedule, noise, scales[move])
            else:
                z_next, is_active, num_scored = self._ranked_move(z, t, s, schedule, noise)
            passes = is_active.long().cpu()
            yield StepOutput(z_next, float(s), z_next != z, passes, passes * num_scored)
            z = z_next

    def _draw_positions(
        self, z: Int[Tensor, "b l"], t: Tensor, s: Tensor, schedule: Schedule, noise: SequenceNoise, num: int
    ) -> Bool[Tensor, "b m l"]:
        """For each of ``num`` independent candidates, the masked positions that the move reveals."""
        reveal = reveal_probability(alpha_at(schedule, s), alpha_at(schedule, t)).to(z.device)
        uniforms = noise.uniforms(num, z.shape[1])
        return (z == self.denoiser.mask_id)[:, None] & (uniforms < reveal)

    def _tilted_move(
        self, z: Int[Tensor, "b l"], t: Tensor, s: Tensor, schedule: Schedule, noise: SequenceNoise, scale: float
    ) -> tuple[Int[Tensor, "b l"], Bool[Tensor, " b"], int]:
        """A move whose logits are tilted by ``scale`` times the clamped gradient of the reward."""
        is_masked = z == self.denoiser.mask_id
        is_revealed = self._draw_positions(z, t, s, schedule, noise, 1)[:, 0]
        uniforms = noise.uniforms(z.shape[1])
        is_active = is_revealed.any(1)
        if not is_active.any():
            return z, is_active, 0
        z_active, is_masked, revealed = z[is_active], is_masked[is_active], is_revealed[is_active]
        features = features_of(self.denoiser, z_active, t, schedule)
        if scale == 0:
            logits = self.denoiser.head(features[revealed])
        else:
            logits = self.denoiser.head(features[is_masked])
            gradient = self._reward_gradient(logits, z_active, is_masked, t, schedule)
            bound = self.guidance.gradient_clamp
            logits = (logits + scale * gradient.clamp(-bound, bound))[revealed[is_masked]]
        log_probs = token_log_probs(logits / self.temperature, self.denoiser.mask_id)
        z = z.clone()
        z[is_revealed] = sample_categorical(log_probs, uniforms[is_revealed])
        return z, is_active, 0 if scale == 0 else 2

    def _reward_gradient(
        self,
        logits: Float[Tensor, "n v"],
        z: Int[Tensor, "b l"],
        is_masked: Bool[Tensor, "b l"],
        t: Tensor,
        schedule: Schedule,
    ) -> Float[Tensor, "n v"]:
        """Gradient of minus the summed log-ratio at masked positions, through the expected embedding."""
        with torch.enable_grad():
            leaf = logits.detach().float().requires_grad_(True)
            simplex = F.one_hot(z, self.denoiser.vocab_size).float()
            simplex[is_masked] = token_log_probs(leaf, self.denoiser.mask_id).exp()
            level = sigma(schedule, t.to(z.device).expand(z.shape[0])).float()
            log_ratio = self.discriminator(simplex, level if self.discriminator.is_time_conditioned else None)
            reward = -(log_ratio[is_masked] if log_ratio.ndim == 2 else log_ratio).sum()
            return torch.autograd.grad(reward, leaf)[0]

    def _ranked_move(
        self, z: Int[Tensor, "b l"], t: Tensor, s: Tensor, schedule: Schedule, noise: SequenceNoise
    ) -> tuple[Int[Tensor, "b l"], Bool[Tensor, " b"], int]:
        """A move drawn ``num_candidates`` times from one network pass, of which one is chosen by its reward."""
        num = self.guidance.num_candidates
        is_revealed = self._draw_positions(z, t, s, schedule, noise, num)
        uniforms, choice = noise.uniforms(num, z.shape[1]), noise.uniforms(1)
        is_active = is_revealed.any(2).any(1)
        if not is_active.any():
            return z, is_active, 0
        revealed = is_revealed[is_active]
        features = features_of(self.denoiser, z[is_active], t, schedule)
        is_needed = revealed.any(1)
        logits = self.denoiser.head(features[is_needed]) / self.temperature
        row_of = is_needed.flatten().cumsum(0).view_as(is_needed)[:, None].expand_as(revealed)[revealed] - 1
        candidates = z[is_active][:, None].repeat(1, num, 1)
        log_probs = token_log_probs(logits, self.denoiser.mask_id)[row_of]
        candidates[revealed] = sample_categorical(log_probs, uniforms[is_active][revealed])
        z = z.clone()
        if num == 1:
            z[is_active] = candidates[:, 0]
            return z, is_active, 0
        level = sigma(schedule, s.to(z.device).expand(candidates.shape[0] * num)).float()
        flat = candidates.flatten(0, 1)
        log_ratio = log_density_ratio(
            log_ratio_logits(self.discriminator, flat, level),
            flat == self.denoiser.mask_id,
            reduction=self.guidance.reduction,
        ).view(-1, num)
        ranked = -log_ratio / self.guidance.rank_temperature
        chosen = (
            ranked.argmax(1) if self.guidance.select == "best" else sample_categorical(ranked, choice[is_active, 0])
        )
        z[is_active] = candidates[torch.arange(len(chosen), device=z.device), chosen]
        return z, is_active, num
