r"""Draws and log-probabilities of the move of uniform-state diffusion from z_t to z_s.

With the stay probability :math:`a = \alpha_t / \alpha_s` and the prediction p of the clean token, both follow from the
posterior of UDLM, Eq. 12 (https://arxiv.org/abs/2412.10193):

.. math:: p(z_s = j | z_t = i) \propto \Bigl[a\,\delta_{ij} + \frac{1 - a}{K}\Bigr]
    \Bigl[\alpha_s p_j + \frac{1 - \alpha_s}{K}\Bigr].

The second factor sums to 1, so that the sum over j is :math:`a\,[\alpha_s p_i + (1 - \alpha_s)/K] + (1 - a)/K`. The
probability of a move thus depends on p at the tokens i and j alone.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.categorical import sample_categorical


def draw_move(
    log_probs: Float[Tensor, "n v"],
    state: Int[Tensor, " n"],
    uniforms: Float[Tensor, " n"],
    alpha_t: float,
    alpha_s: Float[Tensor, " n"],
) -> Int[Tensor, " n"]:
    """Tokens of z_s: a token is kept, drawn from the prediction, or drawn uniformly.

    One uniform number per position decides between these and draws the token.

    Args:
        log_probs: predicted log-probabilities of the clean token.
        state: tokens of z_t.
        uniforms: numbers in [0, 1), float64.
        alpha_t: signal rate of z_t.
        alpha_s: signal rate of z_s at each position, positive and not below ``alpha_t``.
    """
    num, stays = log_probs.shape[-1], alpha_t / alpha_s
    state_prob = log_probs.gather(1, state[:, None]).squeeze(1).double().exp()
    kept_weight = stays * (alpha_s * state_prob + (1 - alpha_s) / num)
    kept = kept_weight / (kept_weight + (1 - stays) / num)
    rest = (uniforms - kept) / (1 - kept)  # negative where the token is kept; uniform in [0, 1) elsewhere
    is_predicted = rest >= 1 - alpha_s
    numbers = ((rest - (1 - alpha_s)) / alpha_s).clamp(0, 1 - 2**-53)
    if state.device.type == "cpu":
        predicted = state.masked_scatter(
            is_predicted, sample_categorical(log_probs[is_predicted], numbers[is_predicted])
        )
    else:  # selecting the positions would make the host wait for their number
        predicted = sample_categorical(log_probs, numbers)
    uniform = symbols(rest / (1 - alpha_s).clamp_min(2**-53), num)
    return torch.where(rest < 0, state, torch.where(is_predicted, predicted, uniform))


def move_log_probs(
    log_probs: Float[Tensor, "n v"], state: Int[Tensor, " n"], tokens: Int[Tensor, " n"], alpha_t: float, alpha_s: float
) -> Float[Tensor, " n"]:
    """Log-probability of the tokens of z_s given z_t, float64; differentiable with respect to ``log_probs``.

    The probability of the token of z_t covers both cases: it is kept, or the same token is drawn.

    Args:
        log_probs: predicted log-probabilities of the clean token.
        state: tokens of z_t.
        tokens: tokens of z_s.
        alpha_t: signal rate of z_t.
        alpha_s: signal rate of z_s, larger than ``alpha_t``.
    """
    num, stays = log_probs.shape[-1], alpha_t / alpha_s
    probs = log_probs.gather(1, torch.stack([state, tokens], 1)).double().exp()
    state_marginal, token_marginal = (alpha_s * probs + (1 - alpha_s) / num).unbind(1)
    likelihood = stays * (state == tokens) + (1 - stays) / num
    return likelihood.log() + token_marginal.log() - (stays * state_marginal + (1 - stays) / num).log()


def symbols(uniforms: Float[Tensor, "*b"], num: int) -> Int[Tensor, "*b"]:
    """Uniform draws of symbols in [0, ``num``) from numbers in [0, 1); a number outside gives the nearest symbol."""
    return (uniforms * num).long().clamp_(0, num - 1)
