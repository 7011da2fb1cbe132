r"""Uniform-state diffusion: a corrupted token is replaced by a uniformly drawn one. UDLM (Schiff et al. 2025), Duo.

With K symbols, :math:`q(z_t | x_0) = \mathrm{Cat}(\alpha_t x_0 + (1 - \alpha_t) / K)`. Every position can change in
every move, so a network predicts all of them. The prediction at a position is the distribution of the clean
token given the state of the *other* positions; ``posterior`` adds the state of the position itself by Bayes' rule.
https://arxiv.org/abs/2412.10193
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from didi.diffusion.canvas import Canvas
from didi.diffusion.process import ElboDraws, TimeConditioned
from didi.diffusion.rowwise import by_rows
from didi.diffusion.schedule import LogLinear, Schedule, sigma, time_at
from didi.diffusion.uniform_moves import symbols


@dataclass(frozen=True)
class Uniform:
    """Uniform-state diffusion; see ``Process`` for the contract of each method.

    Attributes:
        vocab_size: number of symbols K; there is no mask among them.
        schedule: noise schedule.
    """

    vocab_size: int
    schedule: Schedule = field(default_factory=LogLinear)
    name: ClassVar[str] = "uniform"
    draws_per_position: ClassVar[int] = 2

    @property
    def mask_id(self) -> None:
        """None: the process has no mask."""
        return

    @classmethod
    def of_tokenizer(cls, vocab_size: int, mask_id: int, schedule: Schedule) -> "Uniform":
        """See ``Process.of_tokenizer``; [MASK] is left out where it is the last symbol."""
        return cls(mask_id if mask_id == vocab_size - 1 else vocab_size, schedule)

    def num_symbols(self, vocab_size: int) -> int:
        """See ``Process.num_symbols``."""
        del vocab_size
        return self.vocab_size

    def prior(self, canvas: Canvas, draws: Float[Tensor, "b l k"]) -> Int[Tensor, "b l"]:
        """A uniformly drawn symbol at every free position."""
        return canvas.clamped(symbols(draws[..., 1], self.vocab_size))

    def corrupt(
        self, x0: Int[Tensor, "b l"], t: Float[Tensor, " b"], draws: Float[Tensor, "b l k"]
    ) -> Int[Tensor, "b l"]:
        """See ``Process.corrupt``; the first draw decides whether a token is replaced, the second is the new token."""
        is_replaced = draws[..., 0] < (1 - self.schedule.alpha(t))[:, None]
        return torch.where(is_replaced, symbols(draws[..., 1], self.vocab_size), x0)

    def posterior(
        self,
        z: Int[Tensor, "b l"],
        x0_log_probs: Float[Tensor, "b l v"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
    ) -> Float[Tensor, "b l v"]:
        r"""See ``Process.posterior``; UDLM, Eq. 12.

        By Bayes' rule, :math:`q(z_t | z_s)\, p(z_s)`, normalised, with
        :math:`p(z_s) = \alpha_s p(x_0) + (1 - \alpha_s)/K`.
        """
        alpha_s, alpha_t = (self.schedule.alpha(time)[:, None, None] for time in (s, t))
        stays = torch.where(alpha_s > 0, alpha_t / alpha_s.clamp_min(torch.finfo(alpha_s.dtype).tiny), 1.0)
        marginal = alpha_s * x0_log_probs.exp() + (1 - alpha_s) / self.vocab_size
        likelihood = stays * F.one_hot(z, self.vocab_size).to(marginal) + (1 - stays) / self.vocab_size
        joint = likelihood * marginal
        return joint / joint.sum(-1, keepdim=True)

    def reverse_weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], alpha_t: float, alpha_s: float
    ) -> Float[Tensor, "n v"]:
        """See ``Process.reverse_weights``; ``posterior`` with the prediction as the distribution of x0, float64."""
        stays = alpha_t / alpha_s if alpha_s else 1.0
        marginal = alpha_s * logits.double().softmax(-1) + (1 - alpha_s) / self.vocab_size
        likelihood = stays * F.one_hot(z, self.vocab_size) + (1 - stays) / self.vocab_size
        return likelihood * marginal

    def is_predicted(self, z: Int[Tensor, "*b l"]) -> Bool[Tensor, "*b l"]:
        """Every position."""
        return torch.ones_like(z, dtype=torch.bool)

    def log_probs(self, logits: Float[Tensor, "*n v"]) -> Float[Tensor, "*n v"]:
        """See ``Process.log_probs``."""
        return F.log_softmax(logits.float(), dim=-1)

    def noise_level(self, network: TimeConditioned, t: Float[Tensor, " b"]) -> Float[Tensor, " b"] | None:
        r"""Total noise :math:`\sigma_t`; see ``schedule.sigma``."""
        return sigma(self.schedule, t).float() if network.is_time_conditioned else None

    def loss_terms(
        self,
        logits: Float[Tensor, "n v"],
        x0: Int[Tensor, "b l"],
        z: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b l"]:
        r"""See ``Process.loss_terms``; the integrand of UDLM, Eq. 18, divided by :math:`-\alpha'_t/\alpha_t`.

        It is the rate at which the reverse jump process of the network diverges from that of ``x0``. With
        :math:`\bar x_j = K \alpha_t x_j + 1 - \alpha_t` for the clean token, :math:`\bar\theta` likewise for the
        prediction, and i the token of z,

        .. math:: \frac1K \Bigl[\frac{K}{\bar\theta_i} - \frac{K}{\bar x_i}
            + \sum_j \frac{\bar x_j}{\bar x_i} \log\frac{\bar x_j \bar\theta_i}{\bar x_i \bar\theta_j}\Bigr].

        :math:`\bar x` takes two values, so :math:`\log\bar\theta` is the only quantity that has to be summed over all
        symbols (Duo, https://arxiv.org/abs/2506.10892). With :math:`r = K \alpha_t / (1 - \alpha_t)` and the prediction
        p, :math:`\log\bar\theta_j = \log(1 - \alpha_t) + \log(1 + r p_j)`. The terms :math:`\log(1 - \alpha_t)` cancel.
        Therefore the numbers for each symbol can be float32 although the result is of second order in
        :math:`\alpha_t`; the rest is float64.
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
        # x_bar is x_clean at the clean token, x_other at all others, x_state at the state. Of log theta_bar the term
        # log(1 - alpha) is left out.
        x_other = (1 - alpha).clamp_min(torch.finfo(torch.float64).tiny)
        x_clean = num * alpha + x_other
        x_state = torch.where(state == clean, x_clean[:, None], x_other[:, None]).squeeze(1)
        ratio = num * alpha / x_other
        probs = logits.float().softmax(-1)
        log_state, log_clean = (torch.log1p(ratio * probs.gather(1, index).squeeze(1)) for index in (state, clean))
        sum_of_logs = torch.log1p(ratio.float()[:, None] * probs).sum(1, dtype=torch.float64)
        clean_part = torch.xlogy(x_clean, x_clean / x_state) + (num - 1) * torch.xlogy(x_other, x_other / x_state)
        predicted_part = x_other * sum_of_logs + num * alpha * log_clean - num * log_state
        terms = num * torch.exp(-log_state) / x_other - num / x_state + (clean_part - predicted_part) / x_state
        return terms / num

    def loss_weight(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        r""":math:`-\alpha'_t / \alpha_t`, the rate of the forward process."""
        return -self.schedule.alpha_prime(t) / self.schedule.alpha(t)

    def elbo_draws(self, canvas: Canvas, num_draws: int, generators: Sequence[torch.Generator]) -> ElboDraws:
        r"""See ``Process.elbo_draws``; :math:`u = \sqrt{1 - \alpha_t}` is spread evenly instead of t.

        At small t a token is replaced with a probability near t and its loss is then near 1/t. The second moment of the
        integrand is thus near 1/t, and its integral over uniform times diverges. It is finite for the density that is
        proportional to the square root of the moment. The weight :math:`-\alpha'_t/\alpha_t`, divided by this density,
        is :math:`2 u / \alpha_t`.
        """
        first, last = ((1 - self._alpha(time)) ** 0.5 for time in (0.0, 1.0))
        roots, draws = [], []
        for generator in generators:
            shifts = torch.rand(num_draws, dtype=torch.float64, generator=generator)
            roots.append((torch.arange(num_draws) + shifts) / num_draws)
            shape = (num_draws, canvas.length, self.draws_per_position)
            draws.append(torch.rand(shape, dtype=torch.float64, generator=generator))
        copies = canvas.repeat_interleave(num_draws)
        root = (first + torch.cat(roots) * (last - first)).clamp(1e-6, 1 - 1e-9)
        t = time_at(self.schedule, 1 - root**2).to(canvas.tokens.device)
        z = copies.clamped(self.corrupt(copies.tokens, t, torch.cat(draws).to(t.device)))
        weight = 2 * root * (last - first) / (1 - root**2)
        return ElboDraws(z, t, weight.to(t.device), self.prior_divergence())

    def _alpha(self, t: float) -> float:
        return float(self.schedule.alpha(torch.tensor(t, dtype=torch.float64)))

    def prior_divergence(self) -> float:
        r"""KL divergence of :math:`q(z_1 | x_0)` from the uniform distribution, in nats for each position."""
        num, alpha = self.vocab_size, self._alpha(1.0)
        clean_probability = (1 + (num - 1) * alpha) / num
        return clean_probability * math.log(num * clean_probability) + (num - 1) / num * (1 - alpha) * math.log1p(
            -alpha
        )
