"""Reparameterized decoding of DPLM: each move predicts every position anew and keeps the best predictions.

Zheng et al. 2023, https://arxiv.org/abs/2302.05737; Wang et al. 2024, https://arxiv.org/abs/2402.18567: the strategy
``reparam-uncond-deterministic-linear`` with ``gumbel_argmax`` of the public code. A move

1. draws a token at every free position, the argmax of logits plus Gumbel noise; its score is the log-softmax of these;
2. predicts the most frequent tokens of a repetitive sequence again, from a state in which they are masked;
3. masks the positions of lowest score, as many as the time grid requires, visible tokens included. Of the other
   positions, those that were masked take the new tokens; visible tokens stay.

Samples do not follow the distribution of the model. Unlike in the public code, whether a sequence is repetitive depends
on its own free positions only, not on the padding of the batch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.arguments import finite_number, set_fields
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import gumbel_noise
from didi.diffusion.noise import SequenceNoise
from didi.models.denoiser import Denoiser
from didi.sampling.base import StepOutput, features_at, path_alphas, shared_rows
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution


@dataclass(frozen=True)
class Reparameterization:
    """Noise and resampling; the defaults are those of DPLM.

    Attributes:
        gumbel: scale of the Gumbel noise on the logits; 0 takes the likeliest token. In [0, 1e30].
        repetition: a sequence is repetitive if one token takes more than this share of its free positions; at 1 none
            is.
        resample_top_p: top-p of the tokens that are predicted again, in (0, 1].
        rank_gumbel: scale of the Gumbel noise on the scores of sequences that stay repetitive, times the share of masks
            after the move. In [0, 1e30].

    Raises:
        UsageError: a value is out of range.
    """

    gumbel: float = 1.0
    repetition: float = 0.25
    resample_top_p: float = 0.95
    rank_gumbel: float = 1.5

    def __post_init__(self) -> None:
        set_fields(
            self,
            gumbel=finite_number("gumbel", self.gumbel, low=0, high=1e30),
            repetition=finite_number("repetition", self.repetition, low=0, high=1),
            resample_top_p=finite_number("resample_top_p", self.resample_top_p, low=0, high=1, is_low_open=True),
            rank_gumbel=finite_number("rank_gumbel", self.rank_gumbel, low=0, high=1e30),
        )


@dataclass(frozen=True)
class Reparameterized:
    """Reparameterized decoding of a denoiser; float64 noise. Tokens of the prompt are never masked.

    Attributes:
        denoiser: the network.
        process: masked diffusion.
        reparam: noise and resampling.
        token_distribution: temperature and top-p, before the noise.
    """

    denoiser: Denoiser
    process: Absorbing
    reparam: Reparameterization = Reparameterization()
    token_distribution: TokenDistribution = UNMODIFIED

    @torch.inference_mode()
    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``; a move leaves the expected number of masks, rounded down."""
        z, mask_id = self.process.prior(canvas), self.process.mask_id
        no_passes, is_used = torch.zeros(len(z), dtype=torch.long), canvas.is_free.any(1).long().cpu()
        mask_probs = (1 - path_alphas(self.process.schedule, times)).tolist()
        for (t, s), mask_prob in zip(pairwise(times), mask_probs[1:], strict=True):
            share = mask_prob / mask_probs[0]
            tokens, scores = self._predicted(z, canvas, t, noise, None)
            is_repetitive = self._repetitive_tokens(tokens, canvas)
            resampled = is_repetitive.any(1).cpu()
            if resampled.any():
                tokens, scores = self._resampled(tokens, scores, is_repetitive, canvas, t, noise)
                scores = self._with_rank_noise(scores, tokens, canvas, share, noise)
            num_masks = (canvas.is_free.sum(1) * share + 1e-9).long()
            is_masked = self._lowest(scores, canvas.is_free, num_masks)
            is_revealed = canvas.is_free & (z == mask_id) & ~is_masked
            z_next = torch.where(is_revealed, tokens, z).masked_fill(is_masked, mask_id)
            yield StepOutput(z_next, float(s), z_next != z, is_used + resampled.long(), no_passes)
            z = z_next

    def _predicted(
        self,
        z: Int[Tensor, "b l"],
        canvas: Canvas,
        t: Float[Tensor, ""],
        noise: SequenceNoise,
        rows: list[int] | None,
    ) -> tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]:
        """Tokens with the largest noisy logits at every free position, and their scores.

        Args:
            z: state that the network reads.
            canvas: canvas of ``z``.
            t: time of ``z``.
            noise: random numbers of the whole batch.
            rows: sequences of the batch that ``z`` holds, for a second prediction with ``resample_top_p``; None for the
                first prediction of all sequences.
        """
        token_distribution = (
            self.token_distribution
            if rows is None
            else replace(self.token_distribution, top_p=self.reparam.resample_top_p)
        )
        inputs = shared_rows(z, canvas)
        features = features_at(self.denoiser, self.process, inputs, t, canvas.attention_mask).expand(len(z), -1, -1)
        log_probs = token_distribution.log_probs(self.denoiser.head(features[canvas.is_free]), self.process.mask_id)
        uniforms = noise.uniforms(z.shape[1], log_probs.shape[-1], rows=rows, positions=0)[canvas.is_free]
        noisy = (log_probs.double() + self.reparam.gumbel * gumbel_noise(uniforms)).log_softmax(-1)
        best, drawn = noisy.max(-1)
        scores = torch.full(z.shape, math.inf, dtype=torch.float64, device=z.device)
        return z.masked_scatter(canvas.is_free, drawn), scores.masked_scatter(canvas.is_free, best)

    def _repetitive_tokens(self, tokens: Int[Tensor, "b l"], canvas: Canvas) -> Bool[Tensor, "b l"]:
        """Free positions whose token takes more than the share ``repetition`` of the free positions of its sequence."""
        one_hot = torch.nn.functional.one_hot(tokens, self.denoiser.vocab_size) * canvas.is_free[..., None]
        counts = one_hot.sum(1).gather(1, tokens)
        return canvas.is_free & (counts > self.reparam.repetition * canvas.is_free.sum(1, keepdim=True))

    def _resampled(
        self,
        tokens: Int[Tensor, "b l"],
        scores: Float[Tensor, "b l"],
        is_repetitive: Bool[Tensor, "b l"],
        canvas: Canvas,
        t: Float[Tensor, ""],
        noise: SequenceNoise,
    ) -> tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]:
        """``tokens`` and ``scores`` with new predictions at the positions ``is_repetitive``."""
        rows = is_repetitive.any(1).nonzero().squeeze(1)
        state = tokens.masked_fill(is_repetitive, self.process.mask_id)[rows]
        predicted = self._predicted(state, canvas.rows(rows), t, noise, rows.tolist())
        is_replaced = is_repetitive[rows]
        pairs = zip((tokens, scores), predicted, strict=True)
        first, second = (old.index_copy(0, rows, torch.where(is_replaced, new, old[rows])) for old, new in pairs)
        return first, second

    def _with_rank_noise(
        self,
        scores: Float[Tensor, "b l"],
        tokens: Int[Tensor, "b l"],
        canvas: Canvas,
        share: float,
        noise: SequenceNoise,
    ) -> Float[Tensor, "b l"]:
        """Scores with Gumbel noise in the sequences that are still repetitive."""
        rows = self._repetitive_tokens(tokens, canvas).any(1).nonzero().squeeze(1)
        uniforms = noise.uniforms(scores.shape[1], rows=rows.tolist(), positions=0)
        return scores.index_add(0, rows, self.reparam.rank_gumbel * share * gumbel_noise(uniforms))

    @staticmethod
    def _lowest(
        scores: Float[Tensor, "b l"], is_free: Bool[Tensor, "b l"], num: Int[Tensor, " b"]
    ) -> Bool[Tensor, "b l"]:
        """The ``num`` free positions of lowest score."""
        rank = scores.masked_fill(~is_free, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
        return rank < num[:, None]
