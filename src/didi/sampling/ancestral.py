"""Ancestral sampling, Eq. 10 with h = 0, without work that cannot change a sample.

The positions that a move reveals do not depend on their tokens. Therefore the move that reveals each position is drawn
first, on the CPU, for the whole trajectory. All shapes are then known in advance, and the host never waits for the
device. The network runs only for sequences that reveal a position in the move, and its head only at these positions.
While all sequences are in the same first state, one row of the network serves the batch, unless the network reads
latent codes. Samples have the same distribution as without these savings.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import Schedule, nelbo_weight
from didi.models.denoiser import Denoiser
from didi.models.latent import num_codes
from didi.process_group import to_device
from didi.sampling.base import StepOutput, path_alphas, shared_rows
from didi.sampling.latent import drawn_codes
from didi.sampling.passes import Passes, TokenDraw, TrunkPass, received, unshared_moves
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution

Leap = Literal["exact", "tau"]


def tau_leaping_alphas(schedule: Schedule, times: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r"""Effective signal rates of tau-leaping, Campbell et al. 2022, https://arxiv.org/abs/2205.14987.

    The rate :math:`-\alpha'_t/(1-\alpha_t)` at which a mask is revealed is constant within a move, so that a mask stays
    with probability :math:`e^{-(t-s) rate}`; the last move reveals all remaining masks.
    """
    rate = nelbo_weight(schedule, times[:-1])
    stays = torch.exp(-(times[:-1] - times[1:]) * rate).cumprod(0)
    stays[-1] = 0
    return torch.cat([torch.zeros(1, dtype=times.dtype), 1 - stays])


def reveal_moves(
    uniforms: Float[Tensor, "b l"], is_masked: Bool[Tensor, "b l"], alphas: Float[Tensor, " n"]
) -> Int[Tensor, "b l"]:
    """The move that reveals each position, -1 where it is visible already.

    A position is masked at the times with ``u < 1 - alpha`` (``absorbing.is_masked_at``). Its ``u`` is conditioned on
    the position being masked at the first time.
    """
    levels = (1 - alphas).flip(0)[:-1].contiguous()  # rising; the first time, at which all are masked, is left out
    num_later = len(levels) - torch.searchsorted(levels, (uniforms * (1 - alphas[0])).contiguous(), right=True)
    return torch.where(is_masked, num_later, -1)


@dataclass(frozen=True)
class Ancestral:
    """Ancestral sampler of a denoiser.

    For masked diffusion this is also the *analytic* sampler (Tweedie tau-leaping) of SEDD and RADD.

    Attributes:
        denoiser: the network.
        process: masked diffusion.
        token_distribution: temperature and top-p.
        leap: ``exact`` follows the posterior of Eq. 2, ``tau`` is tau-leaping; they differ in the distribution of the
            positions that a move reveals.
        is_whole_batch: run the network on the whole batch in each move that needs it, so that its inputs have one
            shape (``torch.compile``, CUDA graphs).
    """

    denoiser: Denoiser
    process: Absorbing
    token_distribution: TokenDistribution = UNMODIFIED
    leap: Leap = "exact"
    is_whole_batch: bool = False

    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``."""
        return unshared_moves(self, canvas, times, noise)

    @torch.inference_mode()
    def passes(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Passes:
        """See ``passes.PassSampler``."""
        alphas = (path_alphas if self.leap == "exact" else tau_leaping_alphas)(self.process.schedule, times)
        z, start = self.process.prior(canvas), canvas.to("cpu")
        reveal, draw = noise.uniforms(2, z.shape[1], device="cpu", positions=1).unbind(1)
        move_of = reveal_moves(reveal, start.is_free, alphas)
        are_rows_equal = len(shared_rows(self.process.prior(start), start)) == 1 and not num_codes(self.denoiser)
        is_shared = are_rows_equal and not self.is_whole_batch
        no_passes = torch.zeros(len(z), dtype=torch.long)
        for move, (t, s) in enumerate(pairwise(times)):
            is_revealed = move_of == move
            is_active = is_revealed.any(1)
            codes = drawn_codes(self.denoiser, noise, z.shape[1], z.device)
            if is_active.any():
                z = yield from self._reveal(z, canvas, is_revealed, is_active, draw, codes, t, is_shared=is_shared)
                is_shared = False
            yield StepOutput(z, float(s), to_device(is_revealed, z.device), is_active.long(), no_passes)

    def _reveal(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        is_revealed: Bool[Tensor, "b l"],
        is_active: Bool[Tensor, " b"],
        draw: Float[Tensor, "b l"],
        codes: Int[Tensor, "b l"] | None,
        t: Float[Tensor, ""],
        *,
        is_shared: bool,
    ) -> Generator[TrunkPass | TokenDraw, Tensor | None, Int[Tensor, "b l"]]:
        """The state after a move. Arguments other than ``z``, ``canvas`` and ``codes`` are on the CPU."""
        sequence, position = is_revealed.nonzero(as_tuple=True)
        read = torch.zeros(1, dtype=torch.long) if is_shared else torch.arange(len(z))
        if not (is_shared or self.is_whole_batch):
            read = read[is_active]
        row = torch.zeros_like(sequence) if is_shared else torch.searchsorted(read, sequence)
        uniforms = draw[sequence, position]
        read, row, sequence, position, uniforms = (
            to_device(index, z.device) for index in (read, row, sequence, position, uniforms)
        )
        inputs, mask = z, canvas.attention_mask
        if len(read) != len(z):
            inputs, mask = z[read], canvas.rows(read).attention_mask
            codes = None if codes is None else codes[read]
        features = received((yield TrunkPass(inputs, t, mask, codes)))[row, position]
        return z.index_put((sequence, position), received((yield TokenDraw(features, uniforms))))
