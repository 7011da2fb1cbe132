"""Confidence decoding: each move reveals the positions of highest confidence (MaskGIT, LLaDA).

The time grid determines the number of positions that a move reveals, the network determines which. Samples do not
follow the distribution of the model: tokens of high probability, such as common words, are revealed first. The
vocabulary head runs at every mask in every move.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.arguments import finite_number, one_of, set_fields
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import entropy, gumbel_noise, sample_categorical
from didi.diffusion.noise import SequenceNoise
from didi.models.denoiser import Denoiser
from didi.sampling.base import StepOutput, open_positions, path_alphas, shared_rows
from didi.sampling.passes import Passes, TrunkPass, received, unshared_moves
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution

Measure = Literal["probability", "margin", "entropy"]


@dataclass(frozen=True)
class ConfidenceOrder:
    """The order in which positions are revealed.

    Attributes:
        measure: ``probability`` of the drawn token (MaskGIT, https://arxiv.org/abs/2202.04200; LLaDA's low-confidence
            remasking); ``margin`` between the two likeliest tokens (Kim et al. 2025,
            https://arxiv.org/abs/2502.06768); lowest ``entropy`` of the distribution (Dream).
        gumbel: scale of the Gumbel noise on the log-confidence, falling linearly to 0 (MaskGIT's choice temperature);
            0 is the order of the network without noise. In [0, 1e30].

    Raises:
        UsageError: the measure is unknown, or ``gumbel`` is out of range.
    """

    measure: Measure = "probability"
    gumbel: float = 0.0

    def __post_init__(self) -> None:
        set_fields(
            self,
            measure=one_of("a confidence measure", self.measure, get_args(Measure)),
            gumbel=finite_number("gumbel", self.gumbel, low=0, high=1e30),
        )

    def log_confidence(self, log_probs: Float[Tensor, "n v"], drawn: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Log-confidence in the drawn token of each row."""
        if self.measure == "probability":
            return log_probs.gather(1, drawn[:, None]).squeeze(1)
        if self.measure == "entropy":
            return -entropy(log_probs)
        first, second = log_probs.exp().topk(2, dim=-1).values.unbind(-1)
        return (first - second).log()


@dataclass(frozen=True)
class ConfidenceDecoding:
    """Confidence decoding of a denoiser; tokens are drawn in float64.

    Attributes:
        denoiser: the network.
        process: masked diffusion.
        order: the order in which positions are revealed.
        token_distribution: temperature and top-p of the tokens.
    """

    denoiser: Denoiser
    process: Absorbing
    order: ConfidenceOrder = ConfidenceOrder()
    token_distribution: TokenDistribution = UNMODIFIED

    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``; a move leaves the expected number of masks, rounded."""
        return unshared_moves(self, canvas, times, noise)

    @torch.inference_mode()
    def passes(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Passes:
        """See ``passes.PassSampler``."""
        z, mask_id = self.process.prior(canvas), self.process.mask_id
        no_passes = torch.zeros(len(canvas), dtype=torch.long)
        num_left = num_masked = open_positions(self.process, z, canvas).sum(1).cpu()
        alphas = path_alphas(self.process.schedule, times)
        for move, (t, s) in enumerate(pairwise(times)):
            num_left_after = (num_masked * (1 - alphas[move + 1]) / (1 - alphas[0])).round().long()
            num_revealed = num_left - num_left_after
            is_active = num_revealed > 0
            changed = torch.zeros_like(z, dtype=torch.bool)
            if is_active.any():
                cpu_rows = is_active.nonzero().squeeze(1)
                rows = cpu_rows.to(z.device)
                uniforms, order_uniforms = noise.uniforms(2, z.shape[1], rows=cpu_rows.tolist(), positions=1).unbind(1)
                active, active_canvas = z[rows], canvas.rows(rows)
                is_masked = open_positions(self.process, active, active_canvas)
                inputs = shared_rows(active, active_canvas)
                features = received((yield TrunkPass(inputs, t, active_canvas.attention_mask)))
                log_probs = self.token_distribution.log_probs(
                    self.denoiser.head(features.expand(len(active), -1, -1)[is_masked]), mask_id
                )
                drawn = sample_categorical(log_probs, uniforms[is_masked])
                confidence = torch.full(active.shape, -torch.inf, dtype=torch.float64, device=z.device)
                confidence[is_masked] = self.order.log_confidence(log_probs, drawn).double().clamp(min=-1e30)
                if self.order.gumbel:
                    confidence = confidence + self.order.gumbel * float(s) * gumbel_noise(order_uniforms)
                rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
                is_revealed = rank < num_revealed[cpu_rows].to(z.device)[:, None]
                z = z.clone()
                z[rows] = active.masked_scatter(is_masked, drawn).where(is_revealed, active)
                changed[rows] = is_revealed
                num_left = num_left_after
            yield StepOutput(z, float(s), changed, is_active.long(), no_passes)
