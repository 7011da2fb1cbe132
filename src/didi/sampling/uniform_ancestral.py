r"""Samplers of uniform-state diffusion: ancestral (UDLM), greedy-tail and predictor-corrector (Duo).

Every token may change in a move, yet the vocabulary head is needed at few positions. With stay :math:`a = \alpha_t /
\alpha_s`, a token i keeps its place with probability

.. math:: \frac{a\,[\alpha_s p_i + (1 - \alpha_s)/K]}{a\,[\alpha_s p_i + (1 - \alpha_s)/K] + (1 - a)/K},

else it is drawn anew: from the prediction p with probability :math:`\alpha_s`, uniformly otherwise. The probability of
staying grows with :math:`p_i`, so that a uniform number below its value at :math:`p_i = 0` keeps the token whatever the
network says. Such positions are known before the network runs: a share of about :math:`k/(k+1)` in a move that k others
follow. In n moves the head reads some :math:`L (1 + \ln n)` positions instead of :math:`L n`, and nothing is
approximated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.rowwise import rows_at_a_time
from didi.diffusion.uniform import Uniform
from didi.diffusion.uniform_moves import draw_move, symbols
from didi.models.denoiser import Denoiser
from didi.process_group import to_device
from didi.sampling.base import StepOutput, alpha_at, features_at
from didi.sampling.remasking import Remasking
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution

ROWS = 1024  # positions whose distributions over the vocabulary exist at the same time
NO_CORRECTOR, DEFAULT_CORRECTOR = Remasking(eta=0.0), Remasking()


@dataclass(frozen=True)
class UniformAncestral:
    r"""Sampler of a denoiser; float64 draws.

    Attributes:
        denoiser: the network.
        process: uniform-state diffusion.
        token_distribution: temperature and top-p of the predicted clean token.
        is_greedy_tail: the last move takes the likeliest token of the prediction at each position, as the public Duo
            code does in a pass of its own after the last move (https://arxiv.org/abs/2506.10892).
        remask: strength :math:`\sigma` of a corrector. With probability :math:`\sigma / (1 - \alpha_s)` a position is
            predicted clean and corrupted to s anew instead of following the posterior, which leaves the marginals as
            they are: the psi-samplers of https://arxiv.org/abs/2602.21185 with ReMDM's strengths. These may exceed
            :math:`1 - \alpha_s`; the probability is 1 then, as in the public code.
        is_whole_batch: run the network on every sequence in every move, so that it sees one shape only.
    """

    denoiser: Denoiser
    process: Uniform
    token_distribution: TokenDistribution = UNMODIFIED
    is_greedy_tail: bool = False
    remask: Remasking = NO_CORRECTOR
    is_whole_batch: bool = False

    @torch.inference_mode()
    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``."""
        is_free, none = canvas.is_free.cpu(), torch.zeros(len(canvas), dtype=torch.long)
        z = self.process.prior(canvas, noise.uniforms(canvas.length, self.process.draws_per_position, positions=0))
        for t, s in pairwise(times):
            before, move = z, self.move(t, s)
            numbers = noise.uniforms(canvas.length, 2 if move.corrector else 1, device="cpu", positions=0)
            z, is_active = self.moved(z, canvas, is_free, numbers, move, t)
            yield StepOutput(z, float(s), z != before, is_active.long(), none)

    def moved(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        is_free: Bool[Tensor, "b l"],
        numbers: Float[Tensor, "b l k"],
        move: "Move",
        t: Float[Tensor, ""],
    ) -> tuple[Int[Tensor, "b l"], Bool[Tensor, " b"]]:
        """The state after a move, and which sequences needed the network for it.

        Args:
            z: the state before it.
            canvas: of ``z``.
            is_free: that of ``canvas``, on the CPU.
            numbers: uniform ones of every position, two where there is a corrector; on the CPU.
            move: from ``move``.
            t: time of ``z``.
        """
        drawn = move.before_network(numbers[..., 0], numbers[..., -1])
        is_active = (is_open := is_free & drawn.is_open).any(1)
        is_renewed, moved = is_free & drawn.is_renewed, z
        if is_active.any():
            moved = self._drawn(z, canvas, is_open, drawn, move, t)
        pair = (to_device(one, z.device) for one in (is_renewed, drawn.renewed[is_renewed]))
        return moved.masked_scatter(*pair), is_active

    def move_probs(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], t: Float[Tensor, ""], s: Float[Tensor, ""]
    ) -> Float[Tensor, "n v"]:
        """Probabilities of the tokens of free positions after a move, float64: what the sampler draws from.

        Args:
            logits: outputs of the network at the positions.
            z: their tokens before the move.
            t: time before the move.
            s: time after it.
        """
        move = self.move(t, s)
        if move.is_greedy:
            return F.one_hot(logits.argmax(-1), logits.shape[-1]).double()
        log_probs = self.token_distribution.log_probs(logits, None)
        weights = (self.process.reverse_weights(log_probs, z, move.alpha_t, alpha) for alpha in (move.alpha_s, 1.0))
        of_posterior, clean = (one / one.sum(-1, keepdim=True) for one in weights)
        anew = move.alpha_s * clean + (1 - move.alpha_s) / self.process.vocab_size
        return (1 - move.corrector) * of_posterior + move.corrector * anew

    def move(self, t: Float[Tensor, ""], s: Float[Tensor, ""]) -> "Move":
        """What the times of a move decide about it."""
        alpha_t, alpha_s = (float(alpha_at(self.process.schedule, one)) for one in (t, s))
        strength = self.remask.probability(float(t), alpha_t, alpha_s)
        corrector = min(1.0, strength / (1 - alpha_s)) if alpha_s < 1 else 0.0
        return Move(alpha_t, alpha_s, corrector, self.process.vocab_size, self.is_greedy_tail and alpha_s == 1)

    def _drawn(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        is_open: Bool[Tensor, "b l"],
        drawn: "Drawn",
        move: "Move",
        t: Float[Tensor, ""],
    ) -> Int[Tensor, "b l"]:
        """The state with new tokens at the open positions; ``is_open`` and ``drawn`` are on the CPU."""
        sequence, position = is_open.nonzero(as_tuple=True)
        read = torch.arange(len(z)) if self.is_whole_batch else is_open.any(1).nonzero().squeeze(1)
        row, uniforms, alpha = torch.searchsorted(read, sequence), drawn.uniforms[is_open], drawn.alpha[is_open]
        read, row, sequence, position, uniforms, alpha = (
            to_device(one, z.device) for one in (read, row, sequence, position, uniforms, alpha)
        )
        inputs, mask = (z, canvas.attention_mask)
        if len(read) != len(z):
            inputs, mask = z[read], canvas.rows(read).attention_mask
        features = features_at(self.denoiser, self.process, inputs, t, mask)[row, position]
        tokens = []
        for rows, *others in zip(
            *(one.split(ROWS) for one in (features, z[sequence, position], uniforms, alpha)), strict=True
        ):
            logits = self.denoiser.head(rows)
            size = rows_at_a_time(logits.shape[1], logits.device)
            parts = zip(*(one.split(size) for one in (logits, *others)), strict=True)
            tokens += [self._tokens(move, *part) for part in parts]
        return z.index_put((sequence, position), torch.cat(tokens))

    def _tokens(
        self,
        move: "Move",
        logits: Float[Tensor, "n v"],
        state: Int[Tensor, " n"],
        uniforms: Float[Tensor, " n"],
        alpha: Float[Tensor, " n"],
    ) -> Int[Tensor, " n"]:
        """New tokens of open positions."""
        if move.is_greedy:
            self.token_distribution.draw_check.see(logits)
            return logits.argmax(-1)
        return draw_move(self.token_distribution.log_probs(logits, None), state, uniforms, move.alpha_t, alpha)


@dataclass(frozen=True)
class PredictorCorrector(UniformAncestral):
    """``UniformAncestral`` whose default has a corrector."""

    remask: Remasking = DEFAULT_CORRECTOR


@dataclass(frozen=True)
class Drawn:
    """What a move decides before the network runs, for every position, on the CPU.

    Attributes:
        is_open: the network is needed.
        alpha: signal rate that an open position is drawn for: that of s, or 1 where it is predicted clean.
        uniforms: number that an open position is drawn with.
        is_renewed: replaced by a uniformly drawn token, whatever the network says.
        renewed: that token.
    """

    is_open: Bool[Tensor, "*b l"]
    alpha: Float[Tensor, "*b l"]
    uniforms: Float[Tensor, "*b l"]
    is_renewed: Bool[Tensor, "*b l"]
    renewed: Int[Tensor, "*b l"]


@dataclass(frozen=True)
class Move:
    """A move from t to s: signal rates, probability of the corrector, number of symbols, and whether it is greedy."""

    alpha_t: float
    alpha_s: float
    corrector: float
    num: int
    is_greedy: bool

    def before_network(self, uniforms: Float[Tensor, "*b l"], branch: Float[Tensor, "*b l"]) -> Drawn:
        """Everything about the move that does not depend on the network."""
        is_clean, is_renewed = branch < self.corrector, branch < self.corrector * (1 - self.alpha_s)
        alpha = torch.where(is_clean, 1.0, self.alpha_s)
        renewed = uniforms
        if not self.corrector and not self.alpha_t:  # no token keeps its place: a share 1 - alpha_s is drawn uniformly
            is_renewed, renewed = uniforms < 1 - self.alpha_s, uniforms / (1 - self.alpha_s)
        is_kept = torch.where(is_clean, uniforms < self._kept(1.0), uniforms < self._kept(self.alpha_s))
        is_open = torch.ones_like(is_kept) if self.is_greedy else ~(is_kept | is_renewed)
        return Drawn(is_open, alpha, uniforms, is_renewed, symbols(renewed, self.num))

    def _kept(self, alpha: float) -> float:
        """Probability that a token keeps its place if the prediction gives it no mass."""
        stays = self.alpha_t / alpha
        return stays * (1 - alpha) / (stays * (1 - alpha) + 1 - stays) if stays < 1 else 1.0
