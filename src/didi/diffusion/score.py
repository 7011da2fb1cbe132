r"""Score parametrisation (SEDD): the network gives ratios of marginal probabilities instead of a distribution of x0.

At a position with token i the *concrete score* of j is :math:`s_j = p_t(z^{i \to j}) / p_t(z)`, the ratio of the
probabilities of two states that differ at this position. Networks are trained with the denoising score entropy, whose
integral bounds the likelihood, and sampled with the analytic (Tweedie) or the Euler step of the reverse jump process.
Lou et al. 2024, https://arxiv.org/abs/2310.16834. The forward processes are those of ``absorbing`` and ``uniform``.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.process import Process
from didi.diffusion.rowwise import by_rows
from didi.diffusion.schedule import LogLinear, Schedule
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError


@runtime_checkable
class ScoreProcess(Process, Protocol):
    """A process whose networks give scores; ``reverse_weights`` is the analytic step."""

    def euler_weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], t: float, s: float
    ) -> Float[Tensor, "n v"]:
        """Non-negative numbers proportional to the probabilities of an Euler step from time ``t`` to ``s``.

        The jump rates at ``t`` are used for the whole step.
        """
        ...


@dataclass(frozen=True)
class ScoreAbsorbing(Absorbing):
    r"""SEDD absorb: masked diffusion whose networks give scores at masked positions.

    The score of a token j at a masked position is :math:`s_j = \frac{\alpha_t}{1 - \alpha_t}\, p(x_0 = j | z_t)`. As in
    the public code the network's output is :math:`\log g_j` plus a constant, :math:`g_j = s_j (1 - \alpha_t)/\alpha_t`;
    with the constant, outputs of 0 stand for the uniform distribution. At the optimum g is the distribution of the
    masked model. Otherwise the sum of g may differ from 1, which changes how often a mask is revealed; ``log_probs``
    normalises g.
    """

    name: ClassVar[str] = "sedd-absorb"

    def normalised(self) -> Absorbing:
        """Masked diffusion of the same states; it reads network outputs as logits: g divided by its sum."""
        return Absorbing(self.mask_id, self.schedule)

    def _log_ratios(self, logits: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
        """Log g in at least float32; -inf at [MASK]."""
        is_mask = torch.arange(logits.shape[-1], device=logits.device) == self.mask_id
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (logits - math.log(logits.shape[-1] - 1)).masked_fill(is_mask, -torch.inf)

    def token_losses(self, logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        r"""Score entropy at masked positions, divided by :math:`\alpha_t/(1 - \alpha_t)`, in nats.

        It is :math:`\sum_j g_j - \log g_{x_0} - 1`: the cross-entropy of the normalised distribution, plus a term
        that is positive where the sum of g is not 1. Weighted by ``loss_weight``, its integral over t is that of the
        score entropy.
        """
        log_ratios = self._log_ratios(logits)
        return log_ratios.exp().sum(-1) - log_ratios.gather(1, targets[:, None]).squeeze(1) - 1

    def reverse_weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], alpha_t: float, alpha_s: float
    ) -> Float[Tensor, "n v"]:
        """See ``Process.reverse_weights``; the analytic step (Tweedie); no mask is left at alpha_s = 1."""
        del z
        return self._step_weights(logits, (alpha_s - alpha_t) / (1 - alpha_t), is_last=alpha_s == 1)

    def euler_weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], t: float, s: float
    ) -> Float[Tensor, "n v"]:
        """See ``ScoreProcess.euler_weights``."""
        del z
        return self._step_weights(logits, (t - s) * float(self.loss_weight(torch.tensor(t, dtype=torch.float64))))

    def _step_weights(
        self, logits: Float[Tensor, "n v"], reveal: float, *, is_last: bool = False
    ) -> Float[Tensor, "n v"]:
        """``reveal`` times g at each token, and 1 minus their sum at [MASK]; all divided by max(1, largest g)."""
        log_ratios = self._log_ratios(logits)
        scale = log_ratios.amax(-1, keepdim=True).clamp_min(0)
        weights = reveal * (log_ratios - scale).exp()
        rest = scale.squeeze(1).double().neg().exp() - weights.sum(-1, dtype=torch.float64)
        weights[:, self.mask_id] = 0 if is_last else rest.clamp_min(0).to(weights)
        return weights


@dataclass(frozen=True)
class ScoreUniform(Uniform):
    r"""SEDD uniform: uniform-state diffusion whose networks give the logarithm of the score; see ``Uniform``.

    The output at the token of the state is not read, because its score is 1.

    Attributes:
        schedule: noise schedule with :math:`\alpha_1 > 0`, so that the total noise is finite.

    Raises:
        UsageError: the schedule ends at 0.
    """

    schedule: Schedule = field(default_factory=lambda: LogLinear("log-linear-eps", eps=1e-3))
    name: ClassVar[str] = "sedd-uniform"

    def __post_init__(self) -> None:
        if not self._alpha(1.0) > 0:
            raise UsageError(
                f"the schedule of {self.name} ends above 0; {self.schedule.name} ends at 0: set schedule to "
                "log-linear-eps, geometric or geometric-1e-4"
            )

    def log_probs(self, logits: Float[Tensor, "*n v"]) -> Float[Tensor, "*n v"]:
        """Not defined: a score without its state and time gives no distribution of x0.

        Raises:
            UsageError: always.
        """
        del logits
        raise UsageError(
            f"networks of {self.name} give scores and no distribution of the clean token: use its samplers"
        )

    def loss_terms(
        self,
        logits: Float[Tensor, "n v"],
        x0: Int[Tensor, "b l"],
        z: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b l"]:
        r"""See ``Process.loss_terms``; the score entropy of a jump to any other token at the rate 1/K.

        With the ratio :math:`r_j = q(j | x_0) / q(i | x_0)` of the forward process and i the token of z,

        .. math:: \frac1K \sum_{j \ne i} \bigl[s_j - r_j \log s_j + r_j (\log r_j - 1)\bigr].

        For scores that follow from a distribution of x0 it equals the integrand of ``Uniform``.
        """
        alpha = self.schedule.alpha(t).double().to(z.device)[:, None].expand(z.shape).flatten()
        return by_rows(self._terms, logits, z.flatten(), x0.flatten(), alpha).float().view(z.shape)

    def _terms(
        self,
        logits: Float[Tensor, "n v"],
        state: Int[Tensor, " n"],
        clean: Int[Tensor, " n"],
        alpha: Float[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """``loss_terms`` of some positions, float64."""
        num, state, clean = self.vocab_size, state[:, None], clean[:, None]
        scores = logits.float().scatter(1, state, 0.0)
        ratio = num * alpha / (1 - alpha) + 1  # forward probability of the clean token over that of any other token
        is_clean = (state == clean).squeeze(1)
        sums, jumps = scores.sum(1, dtype=torch.float64), scores.exp().sum(1, dtype=torch.float64) - 1
        to_clean = scores.gather(1, clean).squeeze(1).double()
        terms_at_clean = jumps - sums / ratio - (num - 1) / ratio * (ratio.log() + 1)
        terms_at_replaced = jumps - sums - (ratio - 1) * to_clean + ratio * (ratio.log() - 1) - (num - 2)
        return torch.where(is_clean, terms_at_clean, terms_at_replaced) / num

    def reverse_weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], alpha_t: float, alpha_s: float
    ) -> Float[Tensor, "n v"]:
        r"""See ``Process.reverse_weights``; the analytic step (Tweedie tau-leaping).

        The weights are :math:`(e^{-\Delta Q} s)_j\, e^{\Delta Q}(i | j)` with the rate matrix Q and the total noise
        :math:`\Delta` of the move. Scores of an imperfect network can make a weight negative; it is set to 0.
        """
        alpha_t = max(alpha_t, self._alpha(1.0))  # samplers set it to 0 at t = 1: infinite total noise
        num, stays = self.vocab_size, alpha_t / alpha_s
        scores, state_score, state = self._scores(logits, z)
        replaced = (1 - stays) / num  # probability that a token is replaced by a certain other token
        offset = (1 - 1 / stays) * scores.sum(-1, keepdim=True).double() / num
        moved = torch.add((replaced * offset).to(scores), scores, alpha=replaced / stays).clamp_min_(0)
        kept = (state_score / stays + offset).clamp_min(0) * (stays + replaced)
        return moved.scatter_(1, state, kept.to(moved))

    def euler_weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], t: float, s: float
    ) -> Float[Tensor, "n v"]:
        """See ``ScoreProcess.euler_weights``."""
        scores, state_score, state = self._scores(logits, z)
        rate = float(self.loss_weight(torch.tensor(t, dtype=torch.float64)))
        jumps = (scores * ((t - s) * rate / self.vocab_size)).scatter_(1, state, 0.0)
        stays = (state_score - jumps.sum(1, keepdim=True).double()).clamp_min(0)
        return jumps.scatter(1, state, stays.to(jumps))

    def _scores(self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores divided by the largest of their row, at least float32; score and column of the state, [n, 1].

        The score of the state is float64, because it underflows in float32 where another score is very large.
        """
        state = z[:, None]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).scatter(1, state, 0.0)
        largest = logits.amax(1, keepdim=True)
        return (logits - largest).exp_(), largest.double().neg().exp(), state
