r"""Score parametrisation (SEDD): the network gives ratios of marginal probabilities instead of a distribution of x0.

At a position with token i the *concrete score* of j is :math:`s_j = p_t(z^{i \to j}) / p_t(z)`, the ratio of the
probabilities of two states that differ there. It is trained by the denoising score entropy, whose integral bounds the
likelihood, and sampled by the analytic (Tweedie) or the Euler step of the reverse jump process. Lou et al. 2024,
https://arxiv.org/abs/2310.16834. The forward processes are those of ``absorbing`` and ``uniform``.
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

        Jump rates are those at ``t`` for the whole step.
        """
        ...


@dataclass(frozen=True)
class ScoreAbsorbing(Absorbing):
    r"""SEDD absorb: masked diffusion whose networks give scores at masked positions.

    The score of a token j at a mask is :math:`s_j = \frac{\alpha_t}{1 - \alpha_t}\, p(x_0 = j | z_t)`. As in the public
    code the network's output is :math:`\log g_j` plus a constant, with :math:`g_j = s_j (1 - \alpha_t)/\alpha_t`; the
    constant makes outputs of 0 the uniform distribution. At the optimum g is the distribution of the masked model. Its
    sum may differ from 1 before, which changes how often a mask is revealed. ``log_probs`` normalises it.
    """

    name: ClassVar[str] = "sedd-absorb"

    def normalised(self) -> Absorbing:
        """Masked diffusion of the same states, whose networks' outputs are read as logits: g over its sum."""
        return Absorbing(self.mask_id, self.schedule)

    def _log_ratios(self, logits: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
        """Log g in float32 at least; -inf at the mask."""
        is_mask = torch.arange(logits.shape[-1], device=logits.device) == self.mask_id
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (logits - math.log(logits.shape[-1] - 1)).masked_fill(is_mask, -torch.inf)

    def token_losses(self, logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        r"""Score entropy at masked positions over :math:`\alpha_t/(1 - \alpha_t)`, in nats.

        It is :math:`\sum_j g_j - \log g_{x_0} - 1`: the cross-entropy of the normalised distribution, plus a term
        that is positive where the sum of g is not 1. With ``loss_weight`` it has the integral of the score entropy.
        """
        log_ratios = self._log_ratios(logits)
        return log_ratios.exp().sum(-1) - log_ratios.gather(1, targets[:, None]).squeeze(1) - 1

    def reverse_weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], alpha_t: float, alpha_s: float
    ) -> Float[Tensor, "n v"]:
        """See ``Process.reverse_weights``; the analytic step (Tweedie), which leaves no mask at alpha_s = 1."""
        del z
        return self._stepped(logits, (alpha_s - alpha_t) / (1 - alpha_t), is_last=alpha_s == 1)

    def euler_weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], t: float, s: float
    ) -> Float[Tensor, "n v"]:
        """See ``ScoreProcess.euler_weights``."""
        del z
        return self._stepped(logits, (t - s) * float(self.loss_weight(torch.tensor(t, dtype=torch.float64))))

    def _stepped(self, logits: Float[Tensor, "n v"], chance: float, *, is_last: bool = False) -> Float[Tensor, "n v"]:
        """``chance`` times g at the tokens and the rest at the mask, over the largest g where that is above 1."""
        log_ratios = self._log_ratios(logits)
        scale = log_ratios.amax(-1, keepdim=True).clamp_min(0)
        weights = chance * (log_ratios - scale).exp()
        rest = scale.squeeze(1).double().neg().exp() - weights.sum(-1, dtype=torch.float64)
        weights[:, self.mask_id] = 0 if is_last else rest.clamp_min(0).to(weights)
        return weights


@dataclass(frozen=True)
class ScoreUniform(Uniform):
    r"""SEDD uniform: uniform-state diffusion whose networks give the logarithm of the score; see ``Uniform``.

    The output at the token of the state itself is not read: its score is 1.

    Attributes:
        schedule: noise schedule with :math:`\alpha_1 > 0`; scores of pure noise carry no information.

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
        raise UsageError(f"networks of {self.name} give scores, no distribution of the clean token: use its samplers")

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

        With the score of a distribution of x0 it is the integrand of ``Uniform``.
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
        hit = num * alpha / (1 - alpha) + 1  # the ratio of the clean token to any other one
        is_clean = (state == clean).squeeze(1)
        sums, jumps = scores.sum(1, dtype=torch.float64), scores.exp().sum(1, dtype=torch.float64) - 1
        to_clean = scores.gather(1, clean).squeeze(1).double()
        away = jumps - sums / hit - (num - 1) / hit * (hit.log() + 1)
        back = jumps - sums - (hit - 1) * to_clean + hit * (hit.log() - 1) - (num - 2)
        return torch.where(is_clean, away, back) / num

    def reverse_weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], alpha_t: float, alpha_s: float
    ) -> Float[Tensor, "n v"]:
        r"""See ``Process.reverse_weights``; the analytic step (Tweedie tau-leaping).

        Its weights are :math:`(e^{-\Delta Q} s)_j\, e^{\Delta Q}(i | j)` with the rate matrix Q and the total noise
        :math:`\Delta` of the move. A ratio that no pair of marginals has can make an entry negative; it becomes 0.
        """
        num, stays = self.vocab_size, max(alpha_t, self._alpha(1.0)) / alpha_s
        scores, own, state = self._scores(logits, z)
        replaced = (1 - stays) / num  # probability that a token becomes a given other one
        offset = (1 - 1 / stays) * scores.sum(-1, keepdim=True).double() / num
        moved = torch.add((replaced * offset).to(scores), scores, alpha=replaced / stays).clamp_min_(0)
        here = (own / stays + offset).clamp_min(0) * (stays + replaced)
        return moved.scatter_(1, state, here.to(moved))

    def euler_weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], t: float, s: float
    ) -> Float[Tensor, "n v"]:
        """See ``ScoreProcess.euler_weights``."""
        scores, own, state = self._scores(logits, z)
        rate = float(self.loss_weight(torch.tensor(t, dtype=torch.float64)))
        jumps = (scores * ((t - s) * rate / self.vocab_size)).scatter_(1, state, 0.0)
        return jumps.scatter(1, state, (own - jumps.sum(1, keepdim=True).double()).clamp_min(0).to(jumps))

    def _scores(self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores over the largest of them, in float32 at least; that of the state, [n 1] in float64; its columns."""
        state = z[:, None]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).scatter(1, state, 0.0)
        largest = logits.amax(1, keepdim=True)
        return (logits - largest).exp_(), largest.double().neg().exp(), state
