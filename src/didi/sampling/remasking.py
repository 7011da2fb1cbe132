"""Remasking sampler: visible tokens may be masked again, so that early errors can be corrected (ReMDM).

Wang et al. 2025, https://arxiv.org/abs/2503.00307. In a move a visible token is masked with probability sigma. Masks
are revealed with a higher probability in return, so that the marginals equal those of the diffusion process; sigma = 0
is ancestral sampling.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from didi.arguments import finite_number, one_of, set_fields
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.errors import UsageError
from didi.models.denoiser import Denoiser
from didi.sampling.base import StepOutput, open_positions, path_alphas, shared_rows
from didi.sampling.passes import Passes, TrunkPass, received, unshared_moves
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution

Strategy = Literal["cap", "rescale"]


@dataclass(frozen=True)
class Remasking:
    """How often a visible token is masked again.

    Attributes:
        strategy: sigma is the minimum of ``eta`` and its largest possible value (``cap``), or the product of both
            (``rescale``).
        eta: the strength, in [0, 1]; 0 is ancestral sampling.
        t_on: tokens are masked again from this time on (the paper's *switch*).
        t_off: tokens are masked again until this time, at most ``t_on``.

    Raises:
        UsageError: a value is out of range, or the strategy is unknown.
    """

    strategy: Strategy = "cap"
    eta: float = 0.02
    t_on: float = 1.0
    t_off: float = 0.0

    def __post_init__(self) -> None:
        set_fields(
            self,
            strategy=one_of("a remasking strategy", self.strategy, get_args(Strategy)),
            eta=finite_number("remasking eta", self.eta, low=0, high=1),
            t_on=finite_number("t_on", self.t_on),
            t_off=finite_number("t_off", self.t_off),
        )
        if not 0 <= self.t_off <= self.t_on <= 1:
            raise UsageError(f"remasking times are 0 <= t_off <= t_on <= 1; got {self.t_off} and {self.t_on}")

    def probability(self, t: float, alpha_t: float, alpha_s: float) -> float:
        """The sigma of a move from ``t``, at most (1 - alpha_s) / alpha_t; no reverse process has a larger one."""
        if not self.t_off <= t <= self.t_on:
            return 0.0
        largest = 1.0 if alpha_t == 0 else min(1.0, (1 - alpha_s) / alpha_t)
        return min(self.eta, largest) if self.strategy == "cap" else self.eta * largest


@dataclass(frozen=True)
class RemaskingSampler:
    """ReMDM sampler of a denoiser; float64 draws. Tokens of the prompt are never masked.

    Attributes:
        denoiser: the network.
        process: masked diffusion.
        remask: how often visible tokens are masked again.
        token_distribution: temperature and top-p.
    """

    denoiser: Denoiser
    process: Absorbing
    remask: Remasking = Remasking()
    token_distribution: TokenDistribution = UNMODIFIED

    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``."""
        return unshared_moves(self, canvas, times, noise)

    @torch.inference_mode()
    def passes(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Passes:
        """See ``passes.PassSampler``."""
        z, mask_id = self.process.prior(canvas), self.process.mask_id
        no_passes = torch.zeros(len(canvas), dtype=torch.long)
        alphas = path_alphas(self.process.schedule, times).tolist()
        for move, (t, s) in enumerate(pairwise(times)):
            alpha_t, alpha_s = alphas[move], alphas[move + 1]
            remask = self.remask.probability(float(t), alpha_t, alpha_s)
            reveal = (alpha_s - (1 - remask) * alpha_t) / (1 - alpha_t)
            event_draws, token_draws = noise.uniforms(2, z.shape[1], positions=1).unbind(1)
            is_masked = open_positions(self.process, z, canvas)
            is_revealed = is_masked & (event_draws < reveal)
            is_remasked = canvas.is_free & ~is_masked & (event_draws < remask)
            is_active = is_revealed.any(1)
            z_next = z.masked_fill(is_remasked, mask_id)
            if is_active.any():
                active = z[is_active]
                active_canvas = canvas.rows(is_active)
                inputs = shared_rows(active, active_canvas)
                features = received((yield TrunkPass(inputs, t, active_canvas.attention_mask)))
                features = features.expand(len(active), -1, -1)
                logits = self.denoiser.head(features[is_revealed[is_active]])
                z_next[is_revealed] = self.token_distribution.sample(logits, mask_id, token_draws[is_revealed])
            z = z_next
            yield StepOutput(z, float(s), is_revealed | is_remasked, is_active.long().cpu(), no_passes)
