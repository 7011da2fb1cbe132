r"""Losses of Di[M]O (Zhu et al. 2025, https://arxiv.org/abs/2503.15457) as pure functions of tensors.

The student draws x, and masking some of its tokens gives a state. The auxiliary model learns the masked tokens, so that
its optimum p_a is their distribution given the state. The loss is a divergence of p_a from the teacher's prediction
p_T; its gradient with respect to the logits of p_a is used as the gradient with respect to the student's logits.
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.arguments import one_of
from didi.diffusion.categorical import divergence

MaskRatios = Literal["arccos", "uniform"]


def mask_ratios(kind: MaskRatios, uniforms: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    r"""Shares of masked positions in training states, in [0, 1].

    Args:
        kind: ``arccos`` is :math:`2 \arccos(u) / \pi`, which favours large shares; ``uniform`` is u.
        uniforms: u in [0, 1).

    Raises:
        UsageError: no distribution has that name.
    """
    one_of("a distribution of mask ratios", kind, get_args(MaskRatios))
    return torch.arccos(uniforms) * (2 / math.pi) if kind == "arccos" else uniforms


def logit_gradient(
    auxiliary_log_probs: Float[Tensor, "n v"], teacher_log_probs: Float[Tensor, "n v"], reverse_weight: float
) -> Float[Tensor, "n v"]:
    r"""Gradient of the divergence of each row with respect to the logits of the auxiliary model.

    .. math:: (1 - \beta) (p_a - p_T) + \beta\, p_a \left(\log \frac{p_a}{p_T} - KL(p_a \| p_T)\right)

    Args:
        auxiliary_log_probs: log p_a, normalised; -inf at the same tokens as ``teacher_log_probs``.
        teacher_log_probs: log p_T, normalised.
        reverse_weight: beta of the generalised Jeffreys divergence; 0 is the forward KL(p_T || p_a), 1 the reverse
            KL(p_a || p_T), 0.5 half of Jeffreys' divergence. Numbers outside [0, 1] are allowed, as in the paper.

    Returns:
        Gradients; each row sums to 0, and is 0 at tokens with probability 0.
    """
    p_auxiliary, p_teacher = auxiliary_log_probs.exp(), teacher_log_probs.exp()
    gradient = (1 - reverse_weight) * (p_auxiliary - p_teacher)
    if reverse_weight:
        reverse_kl = divergence("backward", teacher_log_probs, auxiliary_log_probs)[:, None]
        gap = (auxiliary_log_probs - teacher_log_probs).masked_fill(auxiliary_log_probs == -torch.inf, 0.0)
        gradient = gradient + reverse_weight * p_auxiliary * (gap - reverse_kl)
    return gradient


def surrogate_loss(logits: Float[Tensor, "n v"], gradient: Float[Tensor, "n v"]) -> Float[Tensor, ""]:
    r"""A scalar, summed over rows, whose gradient with respect to ``logits`` is ``gradient``.

    The surrogate of the paper, :math:`\frac{1}{2} \|z - sg(z - g)\|^2`, has the same gradient, but loses digits of g if
    the logits z are large.

    Args:
        logits: logits of the student at masked positions.
        gradient: g from ``logit_gradient``; treated as constant.
    """
    return (logits.float() * gradient.detach()).sum()


def auxiliary_losses(
    log_probs: Float[Tensor, "n v"], targets: Int[Tensor, " n"], label_smoothing: float
) -> Float[Tensor, " n"]:
    """Cross-entropy of the student's tokens at masked positions, in nats.

    The optimum is the distribution of the token given the state; with label smoothing e, a mixture with weight e of the
    uniform distribution.

    Args:
        log_probs: log-probabilities of the auxiliary model, normalised; -inf at [MASK], which smoothing excludes.
        targets: tokens of the student.
        label_smoothing: e in [0, 1).
    """
    nll = -log_probs.gather(1, targets[:, None])[:, 0]
    if not label_smoothing:
        return nll
    is_possible = log_probs > -torch.inf
    mean = torch.where(is_possible, log_probs, 0.0).sum(1) / is_possible.sum(1)
    return (1 - label_smoothing) * nll - label_smoothing * mean
