r"""The absorbing (masking) diffusion process: kernel, posterior, SUBS rule, NELBO. Eq. 1-3 of the DiDi-Instruct paper.

Whether a position is visible at time ``t`` never depends on its token: position ``l`` has a uniform number ``u`` and is
masked at exactly those times with ``u < 1 - alpha_t``. The same coupling runs forward (corruption) and backward
(ancestral sampling, Eq. 10), so both are exact with one uniform per position for a whole trajectory.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def is_masked_at(uniforms: Float[Tensor, "b l"], alpha: Float[Tensor, " b"]) -> Bool[Tensor, "b l"]:
    r"""Which positions are masked when tokens are visible with probability ``alpha``, Eq. 1.

    Args:
        uniforms: the positions' uniform numbers in [0, 1); fixed along a trajectory.
        alpha: :math:`\alpha_t` of each sequence.
    """
    return uniforms < (1 - alpha).to(uniforms.dtype)[:, None]


def corrupt(
    x0: Int[Tensor, "b l"], alpha: Float[Tensor, " b"], mask_id: int, uniforms: Float[Tensor, "b l"]
) -> Int[Tensor, "b l"]:
    r"""A draw of :math:`z_t \sim Q(z_t | x_0)`, Eq. 1: each token stays with probability ``alpha``, else is masked."""
    return x0.masked_fill(is_masked_at(uniforms, alpha), mask_id)


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
        x0_probs: law of the clean token at each position, with no mass on the mask.
        alpha_s: signal rate at time s < t.
        alpha_t: signal rate at time t.
        mask_id: index of [MASK].
    """
    reveal = reveal_probability(alpha_s, alpha_t)[:, None, None]
    mixed = reveal * x0_probs
    mixed[..., mask_id] += 1 - reveal[..., 0]
    visible = F.one_hot(z_t, x0_probs.shape[-1]).to(mixed)
    return torch.where((z_t == mask_id)[..., None], mixed, visible)


def token_log_probs(logits: Float[Tensor, "*shape v"], mask_id: int) -> Float[Tensor, "*shape v"]:
    """Log-probabilities of the clean token at masked positions: the mask gets -inf, the rest sum to 1; float32."""
    is_mask = torch.arange(logits.shape[-1], device=logits.device) == mask_id
    return F.log_softmax(logits.float().masked_fill(is_mask, -torch.inf), dim=-1)


def subs_log_probs(logits: Float[Tensor, "b l v"], z_t: Int[Tensor, "b l"], mask_id: int) -> Float[Tensor, "b l v"]:
    """The SUBS rule (Sahoo et al. 2024): no mass on the mask, and visible tokens stay as they are.

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
        weight: :math:`-\alpha'_t/(1 - \alpha_t)` over the density from which ``t`` was drawn.
    """
    return weight * torch.where(is_masked, nll, 0.0).sum(-1)
