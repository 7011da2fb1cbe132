"""Entropy-bounded decoding: a pass reveals as many tokens as a bound on their entropies allows.

Ben-Hamu et al. 2025, https://arxiv.org/abs/2505.24857. Tokens of one pass are drawn as if they were independent. The
error of this, a KL divergence, is at most the sum of their entropies without the largest one. Each pass reveals as many
positions of lowest entropy as possible with that sum at most the bound. At bound 0 that is one token in each pass,
beside tokens of entropy 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from didi.arguments import finite_number, set_fields
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import entropy, sample_categorical
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import time_at
from didi.models.denoiser import Denoiser
from didi.sampling.base import StepOutput, open_positions, shared_rows
from didi.sampling.passes import Passes, TrunkPass, received, unshared_moves
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution


@dataclass(frozen=True)
class EntropyBounded:
    """Entropy-bounded decoding of a denoiser; tokens are drawn in float64.

    Attributes:
        denoiser: the network.
        process: masked diffusion.
        entropy_bound: gamma in nats, the bound on the sum of the entropies of a pass without the largest one.
        token_distribution: temperature and top-p of the tokens.

    Raises:
        UsageError: the bound is negative or not finite.
    """

    denoiser: Denoiser
    process: Absorbing
    entropy_bound: float = 1.0
    token_distribution: TokenDistribution = UNMODIFIED

    def __post_init__(self) -> None:
        set_fields(self, entropy_bound=finite_number("entropy_bound", self.entropy_bound, low=0))

    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``; there are as many passes as needed, and ``times`` are ignored.

        A network conditioned on time reads the time at which the expected share of masks equals the present share.
        """
        return unshared_moves(self, canvas, times, noise)

    @torch.inference_mode()
    def passes(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Passes:
        """See ``passes.PassSampler``."""
        del times
        z, mask_id = self.process.prior(canvas), self.process.mask_id
        no_passes = torch.zeros(len(canvas), dtype=torch.long)
        while (is_masked := open_positions(self.process, z, canvas)).any():
            rows = is_masked.any(1).nonzero().squeeze(1)
            active, is_masked = z[rows], is_masked[rows]
            active_canvas = canvas.rows(rows)
            t = time_at(self.process.schedule, 1 - active_canvas.mean(is_masked.double()))
            inputs = active if self.denoiser.is_time_conditioned else shared_rows(active, active_canvas)
            features = received((yield TrunkPass(inputs, t[: len(inputs)], active_canvas.attention_mask)))
            features = features.expand(len(active), -1, -1)
            log_probs = self.token_distribution.log_probs(self.denoiser.head(features[is_masked]), mask_id)
            self.token_distribution.draw_check.finish()  # the loop waits for the device at every pass anyway
            entropies = torch.full(active.shape, torch.inf, dtype=torch.float64, device=z.device)
            entropies[is_masked] = entropy(log_probs).double()
            ordered, order = entropies.sort(dim=1, stable=True)
            is_revealed = torch.zeros_like(is_masked)
            # In rising order the entropy of a position is the largest so far, so the sum of those before it counts.
            sum_before = ordered.cumsum(1).roll(1, 1).index_fill(1, torch.tensor(0, device=z.device), 0.0)
            is_revealed.scatter_(1, order, sum_before <= self.entropy_bound)
            is_revealed &= is_masked
            uniforms = noise.uniforms(z.shape[1], rows=rows.tolist(), positions=0)
            drawn = sample_categorical(log_probs[is_revealed[is_masked]], uniforms[is_revealed])
            z, changed = z.clone(), torch.zeros_like(z, dtype=torch.bool)
            z[rows] = active.masked_scatter(is_revealed, drawn)
            changed[rows] = is_revealed
            passes = no_passes.index_fill(0, rows.cpu(), 1)
            is_left = open_positions(self.process, z, canvas)
            times_left = time_at(self.process.schedule, 1 - canvas.mean(is_left.double()))
            yield StepOutput(z, float(times_left.max()) if is_left.any() else 0.0, changed, passes, no_passes)
