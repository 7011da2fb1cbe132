"""First-hitting sampling: one token per pass, at the times at which the reverse process reveals it.

Zheng et al. 2025, https://arxiv.org/abs/2409.02908. With n masks left at masking probability m = 1 - alpha, the next
token appears when m has fallen to m * u^(1/n), with u uniform, at a uniformly chosen mask. This is the limit of
ancestral sampling with infinitely many moves, in at most L passes. It never reveals several tokens from one prediction,
the cause of the error of ancestral sampling with few moves.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import time_at
from didi.models.denoiser import Denoiser
from didi.sampling.base import StepOutput, open_positions, shared_rows
from didi.sampling.passes import Passes, TokenDraw, TrunkPass, received, unshared_moves
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution


@dataclass(frozen=True)
class FirstHitting:
    """First-hitting sampler of a denoiser; float64 draws.

    Attributes:
        denoiser: the network.
        process: masked diffusion.
        token_distribution: temperature and top-p.
    """

    denoiser: Denoiser
    process: Absorbing
    token_distribution: TokenDistribution = UNMODIFIED

    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``; the times of the moves are drawn, and of ``times`` only the first is read.

        Each sequence has its own times; the time of a step is the largest of them.
        """
        return unshared_moves(self, canvas, times, noise)

    @torch.inference_mode()
    def passes(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Passes:
        """See ``passes.PassSampler``."""
        z, schedule = self.process.prior(canvas), self.process.schedule
        num_left = open_positions(self.process, z, canvas).sum(1)
        alpha = schedule.alpha(times[:1]).expand(len(z)).to(z.device)
        no_passes = torch.zeros(len(z), dtype=torch.long)
        while (num_left > 0).any():
            time_draw, position_draw, token_draw = noise.uniforms(3).unbind(1)
            alpha = 1 - (1 - alpha) * time_draw ** (1 / num_left.clamp(min=1))
            t = time_at(schedule, alpha)
            is_active = num_left > 0
            # The k-th mask of each row, k uniform; a row without masks stays as it is.
            rank = (position_draw * num_left).long()
            is_masked = open_positions(self.process, z, canvas)
            changed = is_masked & (is_masked.cumsum(1) == (rank + 1)[:, None])
            # Rows have different noise levels, so a network conditioned on them cannot share a row.
            inputs = z if self.denoiser.is_time_conditioned else shared_rows(z, canvas)
            features = received((yield TrunkPass(inputs, t[: len(inputs)], canvas.attention_mask)))
            features = features.expand(len(z), -1, -1)[changed]
            z = z.clone()
            z[changed] = received((yield TokenDraw(features, token_draw[is_active])))
            num_left = num_left - is_active.long()
            yield StepOutput(z, float(t.max()), changed, is_active.long().cpu(), no_passes)
