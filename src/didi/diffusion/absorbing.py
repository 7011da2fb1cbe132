r"""The absorbing (masking) diffusion process: kernel, posterior, SUBS rule, NELBO. Eq. 1-3 of the DiDi-Instruct paper.

Whether a position is visible at time ``t`` never depends on its token: a position with the uniform number ``u`` is
masked exactly at the times with ``u < 1 - alpha_t``. Corruption (forward) and ancestral sampling (backward, Eq. 10) use
the same coupling, so both are exact with one uniform number per position for a whole trajectory.
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
from didi.diffusion.schedule import LogLinear, Schedule, nelbo_weight, sigma, time_at


def is_masked_at(uniforms: Float[Tensor, "b l"], alpha: Float[Tensor, " b"]) -> Bool[Tensor, "b l"]:
    r"""Which positions are masked when tokens are visible with probability ``alpha``, Eq. 1.

    Args:
        uniforms: a uniform number in [0, 1) for each position, the same at all times of a trajectory.
        alpha: :math:`\alpha_t` of each sequence.
    """
    return uniforms < (1 - alpha).to(uniforms.dtype)[:, None]


def corrupt(
    x0: Int[Tensor, "b l"], alpha: Float[Tensor, " b"], mask_id: int, uniforms: Float[Tensor, "b l"]
) -> Int[Tensor, "b l"]:
    r"""A draw of :math:`z_t \sim Q(z_t | x_0)`, Eq. 1: each token stays with probability ``alpha``, else is masked."""
    return x0.masked_fill(is_masked_at(uniforms, alpha), mask_id)


def selected_rows(is_selected: Bool[Tensor, "b l"], num_selected: int) -> Int[Tensor, " n"]:
    """Flat (row-major) indices of the True positions; their known number avoids waiting for a CUDA device."""
    return torch.nonzero_static(is_selected.flatten(), size=num_selected).squeeze(1)


def reveal_probability(alpha_s: Float[Tensor, "*shape"], alpha_t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Probability :math:`(\alpha_s - \alpha_t)/(1 - \alpha_t)` that a masked position is revealed in a move t -> s."""
    return (alpha_s - alpha_t) / (1 - alpha_t)


def posterior_probs(
    z_t: Int[Tensor, "b l"],
    x0_probs: Float[Tensor, "b l v"],
    alpha_s: Float[Tensor, " b"],
    alpha_t: Float[Tensor, " b"],
    mask_id: int,
) -> Float[Tensor, "b l v"]:
    """Posterior Q(z_s | z_t, x0) of Eq. 2 with ``x0`` a distribution over tokens; rows sum to 1.

    Args:
        z_t: state at time t.
        x0_probs: distribution of the clean token at each position, with no mass on [MASK].
        alpha_s: signal rate at time s < t.
        alpha_t: signal rate at time t.
        mask_id: index of [MASK].
    """
    reveal = reveal_probability(alpha_s, alpha_t)[:, None, None]
    mixed = reveal * x0_probs
    mixed[..., mask_id] += 1 - reveal[..., 0]
    visible = F.one_hot(z_t, x0_probs.shape[-1]).to(mixed)
    return torch.where((z_t == mask_id)[..., None], mixed, visible)


def token_log_probs(logits: Float[Tensor, "*shape v"], mask_id: int | None) -> Float[Tensor, "*shape v"]:
    """Log-probabilities of clean tokens, float32; [MASK], if there is one, has probability 0."""
    if mask_id is None:
        return F.log_softmax(logits.float(), dim=-1)
    return F.log_softmax(_without_mask(logits.float(), mask_id), dim=-1)


def _without_mask(logits: Float[Tensor, "*shape v"], mask_id: int) -> Float[Tensor, "*shape v"]:
    """Logits with -inf at [MASK]."""
    is_mask = torch.arange(logits.shape[-1], device=logits.device) == mask_id
    return logits.masked_fill(is_mask, -torch.inf)


def subs_log_probs(logits: Float[Tensor, "b l v"], z_t: Int[Tensor, "b l"], mask_id: int) -> Float[Tensor, "b l v"]:
    """The SUBS rule (Sahoo et al. 2024): [MASK] has probability 0, and visible tokens stay as they are.

    Returns:
        Normalised log-probabilities, float32; a visible position is 0 at its token and -inf elsewhere.
    """
    visible = F.one_hot(z_t, logits.shape[-1]).float().log()
    return torch.where((z_t == mask_id)[..., None], token_log_probs(logits, mask_id), visible)


def nelbo(
    nll: Float[Tensor, "b l"], is_masked: Bool[Tensor, "b l"], weight: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    r"""One-sample estimate of the continuous-time NELBO of each sequence in nats, Eq. 3.

    Args:
        nll: :math:`-\log p_\theta(x_0^l | z_t)` in nats; read at masked positions only.
        is_masked: where ``z_t`` is [MASK].
        weight: :math:`-\alpha'_t/(1 - \alpha_t)`, divided by the density from which ``t`` was drawn.
    """
    return weight * torch.where(is_masked, nll, 0.0).sum(-1)


@dataclass(frozen=True)
class Absorbing:
    """Masked diffusion; see ``Process`` for the contract of each method.

    Attributes:
        mask_id: index of [MASK].
        schedule: noise schedule.
    """

    mask_id: int
    schedule: Schedule = field(default_factory=LogLinear)
    name: ClassVar[str] = "absorbing"
    draws_per_position: ClassVar[int] = 1

    @classmethod
    def of_tokenizer(cls, vocab_size: int, mask_id: int, schedule: Schedule) -> "Absorbing":
        """See ``Process.of_tokenizer``."""
        del vocab_size
        return cls(mask_id, schedule)

    def num_symbols(self, vocab_size: int) -> int:
        """All symbols, [MASK] included."""
        return vocab_size

    def prior(self, canvas: Canvas, draws: Float[Tensor, "b l k"] | None = None) -> Int[Tensor, "b l"]:
        """[MASK] at every free position; reads no draws."""
        del draws
        return canvas.tokens.masked_fill(canvas.is_free, self.mask_id)

    def corrupt(
        self, x0: Int[Tensor, "b l"], t: Float[Tensor, " b"], draws: Float[Tensor, "b l k"]
    ) -> Int[Tensor, "b l"]:
        """See ``Process.corrupt``."""
        return corrupt(x0, self.schedule.alpha(t), self.mask_id, draws[..., 0])

    def posterior(
        self,
        z: Int[Tensor, "b l"],
        x0_log_probs: Float[Tensor, "b l v"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
    ) -> Float[Tensor, "b l v"]:
        """See ``Process.posterior``; Eq. 2."""
        return posterior_probs(z, x0_log_probs.exp(), self.schedule.alpha(s), self.schedule.alpha(t), self.mask_id)

    def reverse_weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], alpha_t: float, alpha_s: float
    ) -> Float[Tensor, "n v"]:
        """See ``Process.reverse_weights``; Eq. 2 at masked positions, float64."""
        del z
        reveal = (alpha_s - alpha_t) / (1 - alpha_t)
        weights = reveal * _without_mask(logits.double(), self.mask_id).softmax(-1)
        weights[:, self.mask_id] = 1 - reveal
        return weights

    def is_predicted(self, z: Int[Tensor, "*b l"]) -> Bool[Tensor, "*b l"]:
        """The masked positions; the SUBS rule keeps visible tokens."""
        return z == self.mask_id

    def log_probs(self, logits: Float[Tensor, "*n v"]) -> Float[Tensor, "*n v"]:
        """See ``Process.log_probs``; [MASK] has probability 0."""
        return token_log_probs(logits, self.mask_id)

    def noise_level(self, network: TimeConditioned, t: Float[Tensor, " b"]) -> Float[Tensor, " b"] | None:
        r"""Total noise :math:`\sigma_t`, as in MDLM; see ``schedule.sigma``."""
        return sigma(self.schedule, t).float() if network.is_time_conditioned else None

    def loss_terms(
        self,
        logits: Float[Tensor, "n v"],
        x0: Int[Tensor, "b l"],
        z: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b l"]:
        """``token_losses`` at the masked positions; see ``Process.loss_terms``."""
        del t
        masked = selected_rows(self.is_predicted(z), len(logits))
        targets = x0.flatten().index_select(0, masked)
        losses = self.token_losses(logits.float(), targets)
        return torch.zeros(x0.numel(), device=x0.device).index_copy(0, masked, losses).view_as(x0)

    def token_losses(self, logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Loss at masked positions whose clean tokens are ``targets``, in nats: the cross-entropy."""
        return F.cross_entropy(_without_mask(logits, self.mask_id), targets, reduction="none")

    def loss_weight(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """See ``schedule.nelbo_weight``."""
        return nelbo_weight(self.schedule, t)

    def elbo_draws(self, canvas: Canvas, num_draws: int, generators: Sequence[torch.Generator]) -> ElboDraws:
        r"""See ``Process.elbo_draws``; the number of masks is drawn, not the time.

        Integrated over the masked share m of L free positions, the NELBO of Eq. 3 is

        .. math:: \int_0^1 \frac{dm}{m} \sum_n \mathrm{Bin}(n; L, m)\, f_n = \sum_{n=1}^{L} \frac{1}{n} f_n,

        where :math:`f_n` is the expected cross-entropy, summed over n positions masked at random. So n is drawn
        uniformly from 1 to L and the sum is weighted by L / n. Unlike a draw of t, this needs no cut at small times and
        has less variance (https://arxiv.org/abs/2406.03736, App. C; LLaDA, https://arxiv.org/abs/2502.09992, Eq. 6).
        The time of a state is that of its share m; shares above :math:`1 - \alpha_1` have the time 1.
        """
        is_masked = torch.zeros(len(canvas), num_draws, canvas.length, dtype=torch.bool)
        shares, weights = (torch.ones(len(canvas), num_draws, dtype=torch.float64) for _ in range(2))
        for row, (is_free, generator) in enumerate(zip(canvas.is_free.cpu(), generators, strict=True)):
            num_free = int(is_free.sum())
            if num_free:
                mask, shares[row], size = _random_masks(num_draws, num_free, generator)
                is_masked[row, :, is_free] = mask
                weights[row] = num_free / size
        device = canvas.tokens.device
        z = canvas.tokens.repeat_interleave(num_draws, 0).masked_fill(is_masked.flatten(0, 1).to(device), self.mask_id)
        t = time_at(self.schedule, 1 - shares.flatten())
        return ElboDraws(z, t.to(device), weights.flatten().to(device))


def _random_masks(
    num_draws: int, length: int, generator: torch.Generator
) -> tuple[Bool[Tensor, "d l"], Float[Tensor, " d"], Int[Tensor, " d"]]:
    """Masks whose sizes n are spread evenly over 1 to l, their masked shares m, and the sizes.

    Given n, the share is distributed as Beta(n, l - n + 1). So is the n-th smallest of l uniform numbers; the positions
    with numbers up to it are the mask.
    """
    shifts = torch.rand(num_draws, dtype=torch.float64, generator=generator)
    sizes = ((torch.arange(num_draws) + shifts) / num_draws * length).long() + 1
    uniforms = torch.rand(num_draws, length, dtype=torch.float64, generator=generator)
    shares = uniforms.sort(1).values.gather(1, sizes.unsqueeze(1) - 1)
    return uniforms <= shares, shares.squeeze(1), sizes
