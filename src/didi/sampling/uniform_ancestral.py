r"""Samplers of uniform-state diffusion: ancestral (UDLM), greedy-tail and predictor-corrector (Duo).

Every token may change in a move, but the vocabulary head is needed at few positions. With the stay probability
:math:`a = \alpha_t / \alpha_s`, a token i is kept with probability

.. math:: \frac{a\,[\alpha_s p_i + (1 - \alpha_s)/K]}{a\,[\alpha_s p_i + (1 - \alpha_s)/K] + (1 - a)/K},

else a new token is drawn: from the prediction p with probability :math:`\alpha_s`, uniformly otherwise. The probability
of keeping a token grows with :math:`p_i`. A uniform number below its value at :math:`p_i = 0` therefore keeps the token
for any prediction. These positions are known before the network runs. With the log-linear schedule and even times the
head reads a share :math:`n/(mk + n)` of the positions in the move after m others and before k others, n in all, and
:math:`1/n` in the first. In all n moves it reads about :math:`2 L \ln n` positions instead of :math:`L n`, without an
approximation.
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
from didi.sampling.base import ROWS, StepOutput, alpha_at, features_at
from didi.sampling.remasking import Remasking
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution

NO_CORRECTOR, DEFAULT_CORRECTOR = Remasking(eta=0.0), Remasking()


@dataclass(frozen=True)
class UniformAncestral:
    r"""Sampler of a denoiser; float64 draws.

    Attributes:
        denoiser: the network.
        process: uniform-state diffusion.
        token_distribution: temperature and top-p of the predicted clean token.
        is_greedy_tail: the last move takes the most probable token of the prediction at each position. The public Duo
            code does so in an extra pass after the last move (https://arxiv.org/abs/2506.10892).
        remask: strength :math:`\sigma` of a corrector. With probability :math:`\sigma / (1 - \alpha_s)` a clean
            token is predicted and corrupted to s again, instead of a draw from the posterior. This does not change the
            marginals: the psi-samplers of https://arxiv.org/abs/2602.21185 with ReMDM's strengths. A strength above
            :math:`1 - \alpha_s` gives the probability 1, as in the public code.
        is_whole_batch: run the network on the whole batch in every move, so that its inputs have one shape.
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
        is_free, no_passes = canvas.is_free.cpu(), torch.zeros(len(canvas), dtype=torch.long)
        z = self.process.prior(canvas, noise.uniforms(canvas.length, self.process.draws_per_position, positions=0))
        for t, s in pairwise(times):
            before, move = z, self.move(t, s)
            numbers = noise.uniforms(canvas.length, 2 if move.corrector else 1, device="cpu", positions=0)
            z, is_active = self.after_move(z, canvas, is_free, numbers, move, t)
            yield StepOutput(z, float(s), z != before, is_active.long(), no_passes)

    def after_move(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        is_free: Bool[Tensor, "b l"],
        numbers: Float[Tensor, "b l k"],
        move: "UniformMove",
        t: Float[Tensor, ""],
    ) -> tuple[Int[Tensor, "b l"], Bool[Tensor, " b"]]:
        """The state after a move, and which sequences needed the network.

        Args:
            z: state before the move.
            canvas: canvas of ``z``.
            is_free: ``canvas.is_free`` on the CPU.
            numbers: uniform numbers of every position, two with a corrector; on the CPU.
            move: from the method ``move``.
            t: time of ``z``.
        """
        early = move.before_network(numbers[..., 0], numbers[..., -1])
        is_active = (is_open := is_free & early.is_open).any(1)
        is_replaced, z_next = is_free & early.is_replaced, z
        if is_active.any():
            z_next = self._drawn(z, canvas, is_open, early, move, t)
        replaced = (to_device(part, z.device) for part in (is_replaced, early.replacement[is_replaced]))
        return z_next.masked_scatter(*replaced), is_active

    def move_probs(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], t: Float[Tensor, ""], s: Float[Tensor, ""]
    ) -> Float[Tensor, "n v"]:
        """Probabilities of the tokens at free positions after a move, from which the sampler draws; float64.

        Args:
            logits: outputs of the network at these positions.
            z: tokens before the move.
            t: time before the move.
            s: time after the move.
        """
        move = self.move(t, s)
        if move.is_greedy:
            return F.one_hot(logits.argmax(-1), logits.shape[-1]).double()
        log_probs = self.token_distribution.log_probs(logits, None)
        posterior, clean = (
            self.process.reverse_weights(log_probs, z, move.alpha_t, alpha) for alpha in (move.alpha_s, 1.0)
        )
        posterior, clean = (weights / weights.sum(-1, keepdim=True) for weights in (posterior, clean))
        corrupted = move.alpha_s * clean + (1 - move.alpha_s) / self.process.vocab_size
        return (1 - move.corrector) * posterior + move.corrector * corrupted

    def move(self, t: Float[Tensor, ""], s: Float[Tensor, ""]) -> "UniformMove":
        """Signal rates and corrector of the move from t to s."""
        alpha_t, alpha_s = (float(alpha_at(self.process.schedule, time)) for time in (t, s))
        strength = self.remask.probability(float(t), alpha_t, alpha_s)
        corrector = min(1.0, strength / (1 - alpha_s)) if alpha_s < 1 else 0.0
        return UniformMove(alpha_t, alpha_s, corrector, self.process.vocab_size, self.is_greedy_tail and alpha_s == 1)

    def _drawn(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        is_open: Bool[Tensor, "b l"],
        early: "EarlyDraws",
        move: "UniformMove",
        t: Float[Tensor, ""],
    ) -> Int[Tensor, "b l"]:
        """The state with new tokens at the open positions; ``is_open`` and ``early`` are on the CPU."""
        sequence, position = is_open.nonzero(as_tuple=True)
        read = torch.arange(len(z)) if self.is_whole_batch else is_open.any(1).nonzero().squeeze(1)
        row, uniforms, alpha = torch.searchsorted(read, sequence), early.uniforms[is_open], early.alpha[is_open]
        read, row, sequence, position, uniforms, alpha = (
            to_device(part, z.device) for part in (read, row, sequence, position, uniforms, alpha)
        )
        inputs, mask = z, canvas.attention_mask
        if len(read) != len(z):
            inputs, mask = z[read], canvas.rows(read).attention_mask
        features = features_at(self.denoiser, self.process, inputs, t, mask)[row, position]
        tokens = []
        columns = (features, z[sequence, position], uniforms, alpha)
        for rows, *row_columns in zip(*(column.split(ROWS) for column in columns), strict=True):
            logits = self.denoiser.head(rows)
            size = rows_at_a_time(logits.shape[1], logits.device)
            parts = zip(*(column.split(size) for column in (logits, *row_columns)), strict=True)
            tokens += [self._tokens(move, *part) for part in parts]
        return z.index_put((sequence, position), torch.cat(tokens))

    def _tokens(
        self,
        move: "UniformMove",
        logits: Float[Tensor, "n v"],
        state: Int[Tensor, " n"],
        uniforms: Float[Tensor, " n"],
        alpha: Float[Tensor, " n"],
    ) -> Int[Tensor, " n"]:
        """New tokens of open positions."""
        if move.is_greedy:
            self.token_distribution.draw_check.check(logits)
            return logits.argmax(-1)
        return draw_move(self.token_distribution.log_probs(logits, None), state, uniforms, move.alpha_t, alpha)


@dataclass(frozen=True)
class PredictorCorrector(UniformAncestral):
    """``UniformAncestral`` with a corrector by default."""

    remask: Remasking = DEFAULT_CORRECTOR


@dataclass(frozen=True)
class EarlyDraws:
    """The part of a move that is drawn before the network runs, for every position, on the CPU.

    Attributes:
        is_open: positions at which the network is needed.
        alpha: signal rate for which an open position is drawn: that of s, or 1 where a clean token is predicted.
        uniforms: uniform number with which an open position is drawn.
        is_replaced: positions whose token is replaced by a uniformly drawn one for any prediction.
        replacement: the uniformly drawn tokens.
    """

    is_open: Bool[Tensor, "*b l"]
    alpha: Float[Tensor, "*b l"]
    uniforms: Float[Tensor, "*b l"]
    is_replaced: Bool[Tensor, "*b l"]
    replacement: Int[Tensor, "*b l"]


@dataclass(frozen=True)
class UniformMove:
    """A move from t to s.

    Attributes:
        alpha_t: signal rate at t.
        alpha_s: signal rate at s.
        corrector: probability that a position is corrupted again, see ``UniformAncestral.remask``.
        num_symbols: number of symbols K.
        is_greedy: take the most probable token at every position.
    """

    alpha_t: float
    alpha_s: float
    corrector: float
    num_symbols: int
    is_greedy: bool

    def before_network(self, uniforms: Float[Tensor, "*b l"], branch: Float[Tensor, "*b l"]) -> EarlyDraws:
        """Everything about the move that does not depend on the network.

        Args:
            uniforms: uniform numbers with which tokens are drawn.
            branch: uniform numbers that choose between posterior and corrector.
        """
        is_clean, is_replaced = branch < self.corrector, branch < self.corrector * (1 - self.alpha_s)
        alpha = torch.where(is_clean, 1.0, self.alpha_s)
        replacement = uniforms
        if not self.corrector and not self.alpha_t:  # from pure noise no token is kept: a share 1 - alpha_s is uniform
            is_replaced, replacement = uniforms < 1 - self.alpha_s, uniforms / (1 - self.alpha_s)
        is_kept = torch.where(is_clean, uniforms < self._kept(1.0), uniforms < self._kept(self.alpha_s))
        is_open = torch.ones_like(is_kept) if self.is_greedy else ~(is_kept | is_replaced)
        return EarlyDraws(is_open, alpha, uniforms, is_replaced, symbols(replacement, self.num_symbols))

    def _kept(self, alpha: float) -> float:
        """Probability that a token is kept if the prediction gives it probability 0."""
        stays = self.alpha_t / alpha
        return stays * (1 - alpha) / (stays * (1 - alpha) + 1 - stays) if stays < 1 else 1.0
