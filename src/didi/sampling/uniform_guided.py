r"""The reward-guided ancestral sampler (RGAS, Algorithm 2) for uniform-state diffusion, a method of this library.

The reward of a state z_s is minus the log-ratio of the discriminator at (z_s, s), as in ``guided``. The paper treats
masked diffusion, where a move fills masked positions and keeps all others. Here a move may change every position:

*Re-ranking.* M candidates of z_s are drawn from one network pass and scored at (z_s, s). The vocabulary head runs at
the positions that may change in one of the candidates (``uniform_ancestral``).

*Tilting.* With the prediction p at a position, its token after the move has the distribution :math:`\pi(p)`, the
posterior of UDLM, Eq. 12. The discriminator reads the mean embedding :math:`e = \sum_j \pi_j(p) E_j` of that token at
every position, at the noise level of s; the present token counts with the probability that the move keeps it. The
logits of p are tilted by h times the clamped gradient of the reward, and the move draws from :math:`\pi` of the tilted
p:

.. math:: l' = l + h \operatorname{clamp}\Bigl(\frac{\partial e}{\partial l}^\top \frac{\partial r}{\partial e}\Bigr).

The tilt does not depend on the draws of the move, so that positions stay independent given z_t. All mean embeddings are
needed. Therefore the head runs at every position, and a second time at positions that may change.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.rowwise import rows_at_a_time
from didi.diffusion.uniform import Uniform
from didi.diffusion.uniform_moves import draw_move
from didi.models.denoiser import Denoiser
from didi.models.discriminator import Discriminator
from didi.models.guidance import DEFAULT, Guidance
from didi.process_group import to_device
from didi.sampling.base import StepOutput, features_at
from didi.sampling.ranking import candidate_weights, chosen_candidates
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution
from didi.sampling.uniform_ancestral import UniformAncestral, UniformMove

PART = 256  # number of positions whose distributions over the vocabulary exist at the same time


@dataclass(frozen=True)
class UniformGuided:
    """RGAS for a denoiser of uniform-state diffusion and a discriminator of its states; float64 draws.

    Attributes:
        denoiser: the student.
        process: uniform-state diffusion.
        discriminator: estimates the log-ratio of student over teacher.
        guidance: settings of tilted and re-ranked moves.
        token_distribution: temperature and top-p of the predicted clean token, after the tilting.
    """

    denoiser: Denoiser
    process: Uniform
    discriminator: Discriminator
    guidance: Guidance = DEFAULT
    token_distribution: TokenDistribution = UNMODIFIED

    @property
    def unguided(self) -> UniformAncestral:
        """The sampler without guidance."""
        return UniformAncestral(self.denoiser, self.process, self.token_distribution)

    @torch.no_grad()
    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``; with h = 0 and one candidate the samples are those of ``UniformAncestral``."""
        scales, is_free, unguided = self.guidance.scales(len(times) - 1), canvas.is_free.cpu(), self.unguided
        z = self.process.prior(canvas, noise.uniforms(canvas.length, self.process.draws_per_position, positions=0))
        for number, (t, s) in enumerate(pairwise(times)):
            before, move = z, unguided.move(t, s)
            is_tilted = number < len(scales)
            num = 1 if is_tilted else self.guidance.num_candidates
            numbers = noise.uniforms(num, canvas.length, device="cpu", positions=1)
            if num > 1:
                z, is_active, num_scored = self._ranked_move(z, canvas, is_free, numbers, move, (t, s), noise)
            elif is_tilted and scales[number]:
                arguments = z, canvas, is_free, numbers[:, 0], move, (t, s)
                z, is_active, num_scored = self._tilted_move(*arguments, scales[number])
            else:
                z, is_active = unguided.after_move(z, canvas, is_free, numbers.transpose(1, 2), move, t)
                num_scored = torch.zeros(len(z), dtype=torch.long)
            yield StepOutput(z, float(s), z != before, is_active.long(), num_scored)

    # ------------------------------------------------------------------------------------------------ re-ranking --- #

    def _ranked_move(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        is_free: Bool[Tensor, "b l"],
        numbers: Float[Tensor, "b m l"],
        move: UniformMove,
        times: tuple[Float[Tensor, ""], Float[Tensor, ""]],
        noise: SequenceNoise,
    ) -> tuple[Int[Tensor, "b l"], Bool[Tensor, " b"], Int[Tensor, " b"]]:
        """Draw several candidates of the move from one network pass and choose one.

        Args:
            z: state before the move.
            canvas: canvas of ``z``.
            is_free: ``canvas.is_free`` on the CPU.
            numbers: uniform numbers of each candidate, on the CPU.
            move: signal rates of the move.
            times: t and s.
            noise: random numbers of the choice.

        Returns:
            The state after the move, which sequences needed the network, and their discriminator passes.
        """
        num, choice = numbers.shape[1], noise.uniforms(1)[:, 0]
        early = move.before_network(numbers, numbers)
        is_open = is_free & early.is_open.any(1)
        is_active, may_change = is_open.any(1), (is_free & (early.is_open | early.is_replaced).any(1)).any(1)
        is_replaced = to_device(is_free[:, None] & early.is_replaced, z.device)
        candidates = torch.where(is_replaced, to_device(early.replacement, z.device), z[:, None])
        if is_active.any():
            tokens = self._drawn(z, canvas, is_open, numbers, move, times[0])
            candidates.transpose(1, 2)[to_device(is_open, z.device)] = tokens
        if may_change.any():
            rows = to_device(may_change.nonzero().squeeze(1), z.device)
            copies = canvas.rows(rows).repeat_interleave(num)
            log_weights = self.log_weights(candidates[rows].flatten(0, 1), copies, times[1]).view(-1, num)
            self.token_distribution.draw_check.check(log_weights)
            chosen = chosen_candidates(log_weights, self.guidance, choice[rows])
            z = z.index_put((rows,), candidates[rows, chosen])
        return z, is_active, may_change.long() * num

    def _drawn(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        is_open: Bool[Tensor, "b l"],
        numbers: Float[Tensor, "b m l"],
        move: UniformMove,
        t: Float[Tensor, ""],
    ) -> Int[Tensor, "n m"]:
        """Tokens of every candidate at the open positions.

        A position may be open in some candidates only. ``draw_move`` with the same numbers gives the kept or replaced
        token of the others again.
        """
        features, state = self._features(z, canvas, is_open, t)
        uniforms = to_device(numbers.transpose(1, 2)[is_open], z.device)
        alpha, drawn = uniforms.new_full((len(state),), move.alpha_s), []
        size = rows_at_a_time(self.process.vocab_size, z.device)
        columns = (features, state, uniforms, alpha)
        for rows, *row_columns in zip(*(column.split(size) for column in columns), strict=True):
            log_probs = self.token_distribution.log_probs(self.denoiser.head(rows), None)
            drawn.append(self._of_candidates(log_probs, move, *row_columns))
        return torch.cat(drawn)

    @staticmethod
    def _of_candidates(
        log_probs: Float[Tensor, "n v"],
        move: UniformMove,
        state: Int[Tensor, " n"],
        uniforms: Float[Tensor, "n m"],
        alpha: Float[Tensor, " n"],
    ) -> Int[Tensor, "n m"]:
        """Draws of all candidates from one prediction."""
        drawn = [draw_move(log_probs, state, numbers, move.alpha_t, alpha) for numbers in uniforms.unbind(1)]
        return torch.stack(drawn, 1)

    def log_weights(self, z: Int[Tensor, "b l"], canvas: Canvas, s: Float[Tensor, ""]) -> Float[Tensor, " b"]:
        """See ``ranking.candidate_weights``."""
        return candidate_weights(self.discriminator, self.process, self.guidance, z, canvas, s)

    def _features(
        self, z: Int[Tensor, "b l"], canvas: Canvas, is_read: Bool[Tensor, "b l"], t: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """Trunk features and tokens at the positions ``is_read``; the network runs only for sequences that have one."""
        sequence, position = is_read.nonzero(as_tuple=True)
        read, row = sequence.unique_consecutive(return_inverse=True)
        read, row, position = (to_device(index, z.device) for index in (read, row, position))
        inputs = z[read]
        features = features_at(self.denoiser, self.process, inputs, t, canvas.rows(read).attention_mask)
        return features[row, position], inputs[row, position]

    # --------------------------------------------------------------------------------------------------- tilting --- #

    def _tilted_move(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        is_free: Bool[Tensor, "b l"],
        numbers: Float[Tensor, "b l"],
        move: UniformMove,
        times: tuple[Float[Tensor, ""], Float[Tensor, ""]],
        scale: float,
    ) -> tuple[Int[Tensor, "b l"], Bool[Tensor, " b"], Int[Tensor, " b"]]:
        """A move with tilted predictions; the result is as in ``_ranked_move``."""
        early = move.before_network(numbers, numbers)
        is_open, is_replaced = is_free & early.is_open, is_free & early.is_replaced
        replaced = (to_device(part, z.device) for part in (is_replaced, early.replacement[is_replaced]))
        z_next = z.masked_scatter(*replaced)
        if (is_active := is_open.any(1)).any():
            rows = is_active.nonzero().squeeze(1)
            active = to_device(rows, z.device)
            logits = self.tilted_logits(z[active], canvas.rows(active), is_open[rows], times, scale)
            is_read, uniforms = to_device(is_open, z.device), to_device(numbers[is_open], z.device)
            log_probs, alpha = self.token_distribution.log_probs(logits, None), torch.full_like(uniforms, move.alpha_s)
            z_next = z_next.masked_scatter(is_read, draw_move(log_probs, z[is_read], uniforms, move.alpha_t, alpha))
        return z_next, is_active, 2 * is_active.long()

    @torch.no_grad()
    def tilted_logits(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        is_read: Bool[Tensor, "b l"],
        times: tuple[Float[Tensor, ""], Float[Tensor, ""]],
        scale: float,
    ) -> Float[Tensor, "n v"]:
        """Logits of the clean token in a tilted move at the positions ``is_read``.

        The logits of a position do not depend on which other positions are read.

        Args:
            z: state before the move.
            canvas: canvas of ``z``.
            is_read: free positions whose logits are returned.
            times: the times t of ``z`` and s after the move.
            scale: h; at 0 the logits of the denoiser are returned unchanged.
        """
        is_free, (t, s) = to_device(canvas.is_free, is_read.device), times
        features, state = self._features(z, canvas, is_free, t)
        is_returned = to_device(is_read[is_free], z.device)
        move = self.unguided.move(t, s)
        gradients = self._embedding_gradients(z, canvas, features, state, s, move)
        columns = (column[is_returned].split(PART) for column in (features, state, gradients))
        bound, tilted = self.guidance.gradient_clamp, []
        for rows, row_state, row_gradients in zip(*columns, strict=True):
            logits = self.denoiser.head(rows).float()
            with torch.enable_grad():
                leaf = logits.detach().requires_grad_(True)
                mean = self._mean_embedding(leaf, row_state, move)
                (gradient,) = torch.autograd.grad(mean, leaf, row_gradients)
            tilted.append(logits + scale * gradient.clamp(-bound, bound))
        return torch.cat(tilted)

    def _embedding_gradients(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        features: Float[Tensor, "n d"],
        state: Int[Tensor, " n"],
        s: Float[Tensor, ""],
        move: UniformMove,
    ) -> Float[Tensor, "n e"]:
        """Gradient of the summed reward with respect to the mean embeddings of the free positions.

        ``features`` and ``state`` are the trunk features and tokens of these positions.
        """
        parts = zip(features.split(PART), state.split(PART), strict=True)
        means = torch.cat(
            [self._mean_embedding(self.denoiser.head(rows).float(), row_state, move) for rows, row_state in parts]
        )
        embedded = self.discriminator.embed(z)
        with torch.enable_grad():
            leaf = means.detach().requires_grad_(True)
            level = self.process.noise_level(self.discriminator, s.to(z.device).expand(len(z)))
            embedded = embedded.index_put((canvas.is_free,), leaf)
            log_ratio = self.discriminator.from_embeddings(embedded, level, canvas.attention_mask)
            reward = -(log_ratio[canvas.is_free] if log_ratio.ndim == 2 else log_ratio).sum()
            return torch.autograd.grad(reward, leaf)[0]

    def _mean_embedding(
        self, logits: Float[Tensor, "n v"], state: Int[Tensor, " n"], move: UniformMove
    ) -> Float[Tensor, "n e"]:
        """Mean embedding of the tokens after the move."""
        weights = self.process.reverse_weights(logits, state, move.alpha_t, move.alpha_s)
        return self.discriminator.embed((weights / weights.sum(-1, keepdim=True)).float())
