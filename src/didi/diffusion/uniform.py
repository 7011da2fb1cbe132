r"""Uniform-state diffusion: a corrupted token is replaced by a uniformly drawn one. UDLM (Schiff et al. 2025), Duo.

With K symbols, :math:`q(z_t | x_0) = \mathrm{Cat}(\alpha_t x_0 + (1 - \alpha_t) / K)`. Every position can change in
every move, so a network predicts all of them. What it predicts at a position is the distribution of the clean token
given the state of the *other* positions; the state of the position itself enters by Bayes' rule in ``posterior``.
https://arxiv.org/abs/2412.10193
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from didi.diffusion.canvas import Canvas
from didi.diffusion.process import ElboDraws, TimeConditioned
from didi.diffusion.schedule import LogLinear, Schedule, sigma
from didi.errors import UsageError

NO_BOUND = "the bound on the likelihood of uniform-state diffusion is not implemented: use masked diffusion"


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
        """There is none."""
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
        return canvas.clamped(self._symbols(draws[..., 1]))

    def corrupt(
        self, x0: Int[Tensor, "b l"], t: Float[Tensor, " b"], draws: Float[Tensor, "b l k"]
    ) -> Int[Tensor, "b l"]:
        """See ``Process.corrupt``; the first draw decides whether a token is replaced, the second by which."""
        is_replaced = draws[..., 0] < (1 - self.schedule.alpha(t))[:, None]
        return torch.where(is_replaced, self._symbols(draws[..., 1]), x0)

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
        """Not there yet.

        Raises:
            UsageError: always.
        """
        del logits, x0, z, t
        raise UsageError(NO_BOUND)

    def loss_weight(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Not there yet; see ``loss_terms``."""
        del t
        raise UsageError(NO_BOUND)

    def elbo_draws(self, canvas: Canvas, num_draws: int, generators: Sequence[torch.Generator]) -> ElboDraws:
        """Not there yet; see ``loss_terms``."""
        del canvas, num_draws, generators
        raise UsageError(NO_BOUND)

    def _symbols(self, uniforms: Float[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        return (uniforms * self.vocab_size).long().clamp_(max=self.vocab_size - 1)
