"""The reward-guided ancestral sampler (RGAS), Algorithm 2.

In the first moves the student's logits are tilted along the gradient of the reward. In the remaining moves several
candidates are drawn and one is chosen by its reward. The reward is minus the student-over-teacher log-ratio of the
discriminator: guidance moves samples towards the teacher (the paper's Eq. 11 has the other sign, which is worse than
no guidance).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing, reveal_probability
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.models.denoiser import Denoiser
from didi.models.discriminator import Discriminator
from didi.models.guidance import DEFAULT, Guidance
from didi.sampling.base import StepOutput, features_at, open_positions, path_alphas, shared_rows
from didi.sampling.latent import drawn_codes
from didi.sampling.ranking import candidate_weights, chosen_candidates
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution

MEAN_ROWS = 256  # rows whose mean embeddings are computed at the same time: 50 MB at a vocabulary of 50k


@dataclass(frozen=True)
class Guided:
    """RGAS for a denoiser and the discriminator it was trained with; float64 draws.

    Attributes:
        denoiser: the student.
        process: masked diffusion.
        discriminator: estimates the log-ratio of student over teacher.
        guidance: settings of tilted and re-ranked moves.
        token_distribution: temperature and top-p of tokens, after the tilting.
    """

    denoiser: Denoiser
    process: Absorbing
    discriminator: Discriminator
    guidance: Guidance = DEFAULT
    token_distribution: TokenDistribution = UNMODIFIED

    @torch.no_grad()
    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``."""
        scales = self.guidance.scales(len(times) - 1)
        alphas = path_alphas(self.process.schedule, times)
        z = self.process.prior(canvas)
        for move, (t, s) in enumerate(pairwise(times)):
            reveal = float(reveal_probability(alphas[move + 1], alphas[move]))
            codes = drawn_codes(self.denoiser, noise, z.shape[1], z.device)
            if move < len(scales):
                z_next, is_active, num_scored = self._tilted_move(z, canvas, t, reveal, noise, codes, scales[move])
            else:
                z_next, is_active, num_scored = self._ranked_move(z, canvas, t, s, reveal, noise, codes)
            passes = is_active.long().cpu()
            yield StepOutput(z_next, float(s), z_next != z, passes, passes * num_scored)
            z = z_next

    def _draw_positions(
        self, z: Int[Tensor, "b l"], canvas: Canvas, reveal: float, noise: SequenceNoise, num: int
    ) -> Bool[Tensor, "b m l"]:
        """Masked positions that the move reveals in each of ``num`` independent candidates."""
        return open_positions(self.process, z, canvas)[:, None] & (
            noise.uniforms(num, z.shape[1], positions=1) < reveal
        )

    def _features(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        t: Float[Tensor, ""],
        is_read: Bool[Tensor, "b l"],
        codes: Int[Tensor, "b l"] | None,
    ) -> Float[Tensor, "n d"]:
        """Trunk features at the positions ``is_read``; equal rows share one row of the network."""
        inputs = shared_rows(z, canvas) if codes is None else z
        features = features_at(self.denoiser, self.process, inputs, t, canvas.attention_mask, codes)
        return features.expand(len(z), -1, -1)[is_read]

    def _tilted_move(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        t: Float[Tensor, ""],
        reveal: float,
        noise: SequenceNoise,
        codes: Int[Tensor, "b l"] | None,
        scale: float,
    ) -> tuple[Int[Tensor, "b l"], Bool[Tensor, " b"], int]:
        """A move whose logits are tilted by ``scale`` times the clamped gradient of the reward."""
        is_revealed = self._draw_positions(z, canvas, reveal, noise, 1)[:, 0]
        uniforms = noise.uniforms(z.shape[1], positions=0)
        is_active = is_revealed.any(1)
        if not is_active.any():
            return z, is_active, 0
        active, active_canvas, revealed = z[is_active], canvas.rows(is_active), is_revealed[is_active]
        codes = None if codes is None else codes[is_active]
        logits = self.tilted_logits(active, active_canvas, revealed, t, scale, codes)
        z = z.clone()
        z[is_revealed] = self.token_distribution.sample(logits, self.process.mask_id, uniforms[is_revealed])
        return z, is_active, 0 if scale == 0 else 2

    def tilted_logits(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        is_revealed: Bool[Tensor, "b l"],
        t: Float[Tensor, ""],
        scale: float,
        codes: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "n v"]:
        """Logits of a tilted move at the positions that it reveals.

        Args:
            z: state before the move.
            canvas: canvas of ``z``.
            is_revealed: masked positions that the move reveals.
            t: time of ``z``.
            scale: h; at 0 the logits of the denoiser are returned unchanged.
            codes: latent code of each position; None for a denoiser without codes.
        """
        if scale == 0:
            return self.denoiser.head(self._features(z, canvas, t, is_revealed, codes))
        is_masked = open_positions(self.process, z, canvas)
        features, is_drawn = self._features(z, canvas, t, is_masked, codes), is_revealed[is_masked]
        logits = self._token_logits(features[is_drawn])
        gradient = self._reward_gradient(logits, features[~is_drawn], z, canvas, is_revealed, t)
        bound = self.guidance.gradient_clamp
        return logits + scale * gradient.clamp(-bound, bound)

    def _reward_gradient(
        self,
        logits: Float[Tensor, "n v"],
        masked_features: Float[Tensor, "m d"],
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        is_revealed: Bool[Tensor, "b l"],
        t: Float[Tensor, ""],
    ) -> Float[Tensor, "n v"]:
        """Gradient of minus the summed log-ratio at masked positions with respect to ``logits``.

        The discriminator reads the expected embedding of the predicted token at masked positions.

        Args:
            logits: logits at the positions that the move reveals.
            masked_features: trunk features of the masked positions that stay masked.
            z: state before the move.
            canvas: canvas of ``z``.
            is_revealed: positions of ``logits``.
            t: time of ``z``.
        """
        is_masked = open_positions(self.process, z, canvas)
        embedded = self.discriminator.embed(z)
        # In parts, because the distributions over the vocabulary need not exist at the same time.
        means = [self._expected_embedding(self._token_logits(part)) for part in masked_features.split(MEAN_ROWS)]
        embedded[is_masked & ~is_revealed] = torch.cat(means)
        with torch.enable_grad():
            leaf = logits.detach().float().requires_grad_(True)
            embedded = embedded.index_put((is_revealed,), self._expected_embedding(leaf))
            level = self.process.noise_level(self.discriminator, t.to(z.device).expand(len(z)))
            log_ratio = self.discriminator.from_embeddings(embedded, level, canvas.attention_mask)
            reward = -(log_ratio[is_masked] if log_ratio.ndim == 2 else log_ratio).sum()
            return torch.autograd.grad(reward, leaf)[0]

    def _token_logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """Logits of tokens; -inf at [MASK]."""
        logits = self.denoiser.head(features)
        logits[:, self.process.mask_id] = -torch.inf
        return logits

    def _expected_embedding(self, logits: Float[Tensor, "n v"]) -> Float[Tensor, "n d"]:
        return self.discriminator.embed(logits.float().softmax(-1))

    def _ranked_move(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        t: Float[Tensor, ""],
        s: Float[Tensor, ""],
        reveal: float,
        noise: SequenceNoise,
        codes: Int[Tensor, "b l"] | None,
    ) -> tuple[Int[Tensor, "b l"], Bool[Tensor, " b"], int]:
        """Draw ``num_candidates`` candidates of the move from one network pass and choose one by its reward."""
        num = self.guidance.num_candidates
        is_revealed = self._draw_positions(z, canvas, reveal, noise, num)
        uniforms, choice = noise.uniforms(num, z.shape[1], positions=1), noise.uniforms(1)
        is_active = is_revealed.any(2).any(1)
        if not is_active.any():
            return z, is_active, 0
        active, active_canvas, revealed = z[is_active], canvas.rows(is_active), is_revealed[is_active]
        # All candidates share a row of logits: one cumulative distribution, several draws.
        is_read = revealed.any(1)
        codes = None if codes is None else codes[is_active]
        logits = self.denoiser.head(self._features(active, active_canvas, t, is_read, codes))
        drawn = self.token_distribution.sample(
            logits, self.process.mask_id, uniforms[is_active].transpose(1, 2)[is_read]
        )
        candidates = active[:, None].repeat(1, num, 1)
        candidates.transpose(1, 2)[is_read] = drawn
        candidates = torch.where(revealed, candidates, active[:, None])
        z = z.clone()
        if num == 1:
            z[is_active] = candidates[:, 0]
            return z, is_active, 0
        log_weights = self.log_weights(candidates.flatten(0, 1), active_canvas.repeat_interleave(num), s)
        log_weights = log_weights.view(-1, num)
        self.token_distribution.draw_check.check(log_weights)
        chosen = chosen_candidates(log_weights, self.guidance, choice[is_active, 0])
        z[is_active] = candidates[torch.arange(len(chosen), device=z.device), chosen]
        return z, is_active, num

    def log_weights(self, z: Int[Tensor, "b l"], canvas: Canvas, s: Float[Tensor, ""]) -> Float[Tensor, " b"]:
        """See ``ranking.candidate_weights``."""
        return candidate_weights(self.discriminator, self.process, self.guidance, z, canvas, s)
