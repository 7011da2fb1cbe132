"""Samplers of score networks (SEDD, Lou et al. 2024, https://arxiv.org/abs/2310.16834): analytic and Euler steps.

Whether a token changes depends on the scores of all tokens at its position. Therefore the vocabulary head runs at all
positions that can change: masked positions, or all positions in uniform-state diffusion. New tokens are drawn only at
positions that do change.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_from_weights
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.rowwise import rows_at_a_time
from didi.diffusion.score import ScoreProcess
from didi.errors import UsageError
from didi.models.denoiser import Denoiser
from didi.sampling.base import ROWS, StepOutput, alpha_at, features_at, open_positions, shared_rows
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution

Predictor = Literal["analytic", "euler"]


@dataclass(frozen=True)
class ScoreSampler:
    """Sampler of a score network; float64 draws.

    Attributes:
        denoiser: the network.
        process: SEDD absorb or uniform.
        token_distribution: must be ``UNMODIFIED``; scores have no temperature.
        predictor: ``analytic`` (Tweedie tau-leaping) or ``euler``; the last move is always analytic and leaves no
            noise.

    Raises:
        UsageError: temperature or top-p is not 1.
    """

    denoiser: Denoiser
    process: ScoreProcess
    token_distribution: TokenDistribution = UNMODIFIED
    predictor: Predictor = "analytic"

    def __post_init__(self) -> None:
        if self.token_distribution != UNMODIFIED:
            raise UsageError(
                "score networks are sampled at temperature 1 and top_p 1; got "
                f"{self.token_distribution.temperature:g} and {self.token_distribution.top_p:g}: leave both out"
            )

    @torch.inference_mode()
    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``."""
        no_passes = torch.zeros(len(canvas), dtype=torch.long)
        z = self.process.prior(canvas, noise.uniforms(canvas.length, self.process.draws_per_position, positions=0))
        for t, s in pairwise(times):
            is_open, before = open_positions(self.process, z, canvas), z
            passes, uniforms = is_open.any(1).long().cpu(), noise.uniforms(canvas.length, positions=0)
            if passes.any():
                rows = shared_rows(z, canvas)
                features = features_at(
                    self.denoiser, self.process, rows, t, canvas.rows(slice(len(rows))).attention_mask
                )
                tokens = self._drawn(features.expand(len(z), -1, -1)[is_open], z[is_open], uniforms[is_open], t, s)
                z = z.masked_scatter(is_open, tokens)
            yield StepOutput(z, float(s), z != before, passes, no_passes)

    def move_probs(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], t: Float[Tensor, ""], s: Float[Tensor, ""]
    ) -> Float[Tensor, "n v"]:
        """Probabilities of the tokens at open positions after a move, float64; see ``UniformAncestral.move_probs``."""
        weights = self._weights(logits.double(), z, t, s)
        return weights / weights.sum(-1, keepdim=True)

    def _weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], t: Float[Tensor, ""], s: Float[Tensor, ""]
    ) -> Float[Tensor, "n v"]:
        if self.predictor == "euler" and s > 0:
            return self.process.euler_weights(logits, z, float(t), float(s))
        alpha_t, alpha_s = (float(alpha_at(self.process.schedule, time)) for time in (t, s))
        return self.process.reverse_weights(logits, z, alpha_t, alpha_s)

    def _drawn(
        self,
        features: Float[Tensor, "n d"],
        tokens: Int[Tensor, " n"],
        uniforms: Float[Tensor, " n"],
        t: Float[Tensor, ""],
        s: Float[Tensor, ""],
    ) -> Int[Tensor, " n"]:
        """Tokens after a move, computed in parts."""
        drawn = [tokens[:0]]
        for rows, *columns in zip(features.split(ROWS), tokens.split(ROWS), uniforms.split(ROWS), strict=True):
            logits = self.denoiser.head(rows)
            size = rows_at_a_time(logits.shape[1], logits.device)
            parts = zip(logits.split(size), *(column.split(size) for column in columns), strict=True)
            drawn += [self._moved(part_logits, state, numbers, t, s) for part_logits, state, numbers in parts]
        return torch.cat(drawn)

    def _moved(
        self,
        logits: Float[Tensor, "n v"],
        state: Int[Tensor, " n"],
        uniforms: Float[Tensor, " n"],
        t: Float[Tensor, ""],
        s: Float[Tensor, ""],
    ) -> Int[Tensor, " n"]:
        """Tokens after a move: first whether the token changes is drawn, then the new token."""
        self.token_distribution.draw_check.check(logits)
        weights, index = self._weights(logits, state, t, s), state[:, None]
        stays = weights.gather(1, index).squeeze(1).double() / weights.sum(1).double()
        rest = ((uniforms - stays) / (1 - stays).clamp_min(2**-53)).clamp(0, 1 - 2**-53)
        is_changed, other_weights = uniforms >= stays, weights.scatter_(1, index, 0.0)
        if state.device.type == "cpu":
            return state.masked_scatter(is_changed, sample_from_weights(other_weights[is_changed], rest[is_changed]))
        # Selecting the positions would make the host wait for their number.
        return torch.where(is_changed, sample_from_weights(other_weights, rest), state)
