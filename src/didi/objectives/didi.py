r"""DiDi-Instruct as pure functions of tensors: reward, advantage, split score. Eq. 5-9 and 15 of the paper.

Sign convention: a discriminator's logit is :math:`\log q_\nu(z_t) - \log q_\theta(z_t)`, student over teacher, in
nats. The student minimises it; guidance maximises its negative.

Axes: ``s`` states z_tau, ``g`` completions x of one state, ``c`` corruptions z_t of one completion, ``l`` positions.
Three variance reductions that the paper does not have leave the expected gradient unchanged, which ``tests/objectives``
verifies by enumeration:

A. *Revealed-only score.* Given z_tau the tokens of the second move are independent across positions, and the reward
   depends on z_t only. So the score term of a position that is masked in z_t has mean zero and is omitted.
B. *Groups that share a state.* The second move's baseline is the mean of the state's other completions; the first
   move's reward is the mean over the state's completions, and its baseline the mean over the other states.
C. *Several corruptions.* The reward of a completion is averaged over independent z_t.
"""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from didi.arguments import one_of
from didi.errors import UsageError

RewardReduction = Literal["masked-mean", "mean", "sum"]
Grouping = Literal["batch", "rows", "shared-time", "leave-one-out", "shared-state"]
ScoreReduction = Literal["sum", "token-mean"]

STD_EPSILON = 1e-6  # the epsilon of Eq. 7


def log_density_ratio(
    logits: Float[Tensor, "b *l"],
    is_masked: Bool[Tensor, "b l"],
    *,
    reduction: RewardReduction = "masked-mean",
    attention_mask: Bool[Tensor, "b l"] | None = None,
) -> Float[Tensor, " b"]:
    r"""Student-over-teacher log-ratio of each sequence, Eq. 6.

    Args:
        logits: discriminator outputs before the sigmoid, student = 1; ``[b, l]``, or ``[b]`` from a per-sequence head.
        is_masked: True where ``z_t`` is [MASK].
        reduction: ``masked-mean`` averages over masked positions (Eq. 6), or over all positions of a row without masks;
            ``mean`` averages over all positions; ``sum`` adds all positions, as the released sampler does, which acts
            as a lower temperature.
        attention_mask: False at padding, which is excluded; None if there is no padding.

    Returns:
        Log-ratio in nats, float32.

    Raises:
        UsageError: no reduction has that name.
    """
    one_of("a reward reduction", reduction, get_args(RewardReduction))
    logits = logits.float()
    if logits.ndim == 1:
        return logits
    if attention_mask is not None:
        logits = torch.where(attention_mask, logits, 0.0)
    if reduction == "sum":
        return logits.sum(-1)
    if reduction == "mean":
        return logits.mean(-1) if attention_mask is None else logits.sum(-1) / attention_mask.sum(-1)
    return _masked_mean(logits, is_masked, attention_mask)


def _masked_mean(
    values: Float[Tensor, "b *l"], is_masked: Bool[Tensor, "b l"], attention_mask: Bool[Tensor, "b l"] | None = None
) -> Float[Tensor, " b"]:
    """Mean over masked positions, or over all in a row without masks; per-sequence values are returned unchanged."""
    if values.ndim == 1:
        return values
    is_counted = is_masked | ~is_masked.any(-1, keepdim=True)
    if attention_mask is not None:
        is_counted = is_counted & attention_mask
    return torch.where(is_counted, values, 0.0).sum(-1) / is_counted.sum(-1)


def unsmooth(logits: Float[Tensor, "*shape"], label_smoothing: float) -> Float[Tensor, "*shape"]:
    r"""The exact log-ratio of a discriminator trained with smoothed labels, from its logits.

    With labels :math:`1 - \epsilon/2` and :math:`\epsilon/2` the optimum is :math:`D = \epsilon/2 + (1-\epsilon) p`
    where p is the posterior with unsmoothed labels. This function returns the logit of p, with p clipped to
    [1e-4, 1 - 1e-4], in nats; :math:`\epsilon` is in [0, 1).
    """
    if label_smoothing == 0:
        return logits
    probs = (torch.sigmoid(logits.double()) - label_smoothing / 2) / (1 - label_smoothing)
    return torch.logit(probs, eps=1e-4).to(logits.dtype)


def discriminator_loss(
    student_logits: Float[Tensor, "b *l"],
    real_logits: Float[Tensor, "n *l"],
    student_is_masked: Bool[Tensor, "b l"],
    real_is_masked: Bool[Tensor, "n l"],
    *,
    label_smoothing: float = 0.0,
    student_attention_mask: Bool[Tensor, "b l"] | None = None,
    real_attention_mask: Bool[Tensor, "n l"] | None = None,
) -> Float[Tensor, ""]:
    r"""Balanced binary cross-entropy of Eq. 8 over masked positions, half for each side, in nats.

    Args:
        student_logits: logits on corrupted student samples (label 1).
        real_logits: logits on corrupted real or teacher samples (label 0).
        student_is_masked: where the student's states are [MASK]; other positions are excluded, unless a row has no
            masks.
        real_is_masked: where the corrupted real samples are [MASK].
        label_smoothing: :math:`\epsilon` in [0, 1); labels become :math:`1 - \epsilon/2` and :math:`\epsilon/2`.
        student_attention_mask: False at padding of the student's states, which is excluded; None without padding.
        real_attention_mask: False at padding of the real samples; None without padding.
    """
    losses_of_sides = []
    student = student_logits, student_is_masked, student_attention_mask, 1.0
    real = real_logits, real_is_masked, real_attention_mask, 0.0
    for logits, is_masked, attention_mask, label in (student, real):
        target = torch.full_like(logits, label * (1 - label_smoothing) + label_smoothing / 2)
        losses = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
        losses_of_sides.append(_masked_mean(losses, is_masked, attention_mask).mean())
    return (losses_of_sides[0] + losses_of_sides[1]) / 2


class Advantages(NamedTuple):
    """Factors of the score of each move in the loss, without gradient; a positive one decreases the probability."""

    first: Float[Tensor, "s g c"]
    second: Float[Tensor, "s g c"]


def advantages(
    rewards: Float[Tensor, "s g c"],
    *,
    grouping: Grouping,
    group_size: int = 1,
    normalise: bool = True,
    clamp: float | None = None,
) -> Advantages:
    r"""Rewards minus a baseline, divided by a standard deviation: grouped reward normalisation, Eq. 7.

    Args:
        rewards: log-ratios of each corruption of each completion of each state.
        grouping: the groups whose mean is the baseline; the value of a completion is the mean over its corruptions.
            ``batch``: one group of all completions, population standard deviation (the paper).
            ``rows``, ``shared-time``: groups of ``group_size`` consecutive completions, unbiased standard deviation;
            the caller makes the members share a corpus row (released code) or a time.
            ``leave-one-out``: the baseline is the mean over all other states, each with one completion.
            ``shared-state``: the two baselines of reduction B; needs 2 states or more of 2 completions or more.
        group_size: size of the groups of ``rows`` and ``shared-time``.
        normalise: divide by the standard deviation of the group (of the batch for ``leave-one-out`` and
            ``shared-state``).
        clamp: bound on the absolute value of each advantage, after the division; None for no bound.

    Raises:
        UsageError: no grouping has that name, or the sizes do not fit it.
    """
    one_of("an advantage grouping", grouping, get_args(Grouping))
    rewards = rewards.detach().float()
    means = rewards.mean(-1)
    spread = means.std(correction=0)
    if grouping == "shared-state":
        if min(means.shape) < 2:
            raise UsageError(f"shared-state groups need 2 states of 2 completions or more; got {list(means.shape)}")
        state_means = means.mean(1, keepdim=True)
        first = (state_means - _mean_of_others(state_means, dim=0)).expand_as(means)[..., None].expand_as(rewards)
        second = rewards - _mean_of_others(means, dim=1)[..., None]
    elif grouping == "leave-one-out":
        # Completions of one state are not independent, since they share the first move.
        if means.shape[0] < 2 or means.shape[1] > 1:
            raise UsageError(f"leave-one-out needs 2 states or more of 1 completion each; got {list(means.shape)}")
        first = second = rewards - _mean_of_others(means.flatten(), dim=0).reshape(means.shape)[..., None]
    else:
        size = means.numel() if grouping == "batch" else group_size
        if size < 2 or means.numel() % size:
            raise UsageError(
                f"{grouping} groups have 2 members or more and divide the batch; got {size} of {means.numel()}"
            )
        groups = means.reshape(-1, size)
        baseline = groups.mean(1, keepdim=True).expand_as(groups).reshape(means.shape)
        spread = groups.std(1, keepdim=True, correction=int(grouping != "batch")).expand_as(groups).reshape(means.shape)
        first = second = rewards - baseline[..., None]
    if normalise:
        spread = spread[..., None] + STD_EPSILON
        first, second = first / spread, second / spread
    if clamp is not None:
        first, second = first.clamp(-clamp, clamp), second.clamp(-clamp, clamp)
    return Advantages(first, second)


def _mean_of_others(values: Tensor, dim: int) -> Tensor:
    """For each entry the mean of the other entries along ``dim``, a baseline that keeps the estimator unbiased."""
    num = values.shape[dim]
    return (values.sum(dim, keepdim=True) - values) / (num - 1)


def second_move_score(
    log_probs: Float[Tensor, "s g l"],
    is_masked_tau: Bool[Tensor, "s l"],
    is_masked_t: Bool[Tensor, "s g c l"],
    *,
    revealed_only: bool,
) -> Float[Tensor, "s g c"]:
    r"""Score of the second move z_tau -> x for each corruption: the sum of its log-probabilities, Eq. 9.

    Args:
        log_probs: log-probability of the drawn token at each position; only masked positions of ``z_tau`` are used.
        is_masked_tau: where ``z_tau`` is [MASK].
        is_masked_t: where each corruption ``z_t`` is [MASK].
        revealed_only: reduction A, sum only over positions that ``z_t`` reveals.
    """
    is_scored = is_masked_tau[:, None, None].expand_as(is_masked_t)
    if revealed_only:
        is_scored = is_scored & ~is_masked_t
    return torch.where(is_scored, log_probs[:, :, None], 0.0).sum(-1)


def policy_loss(
    first_score: Float[Tensor, " s"],
    second_score: Float[Tensor, "s g c"],
    advantage: Advantages,
    weight: Float[Tensor, " s"],
) -> Float[Tensor, " s"]:
    r"""Surrogate whose gradient is the split-score estimator of Eq. 5, 9 and 15, one value for each state.

    Args:
        first_score: :math:`\log P_\nu(z_\tau | m)` of each state, with gradient; zeros without score decomposition.
        second_score: from ``second_move_score``, with gradient.
        advantage: of the first and of the second move.
        weight: :math:`\omega(t)`, or :math:`\omega(t)/\pi(t)`.
    """
    per_draw = advantage.first * first_score[:, None, None] + advantage.second * second_score
    return weight * per_draw.mean(dim=(1, 2))
