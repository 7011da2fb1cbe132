"""Self-Distillation Through Time (Deschenaux and Gulcehre 2025, https://arxiv.org/abs/2410.21035): pure functions.

"The public code" is github.com/jdeschena/sdtt; its setting ``distill_mode`` has other names for the losses.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from didi.diffusion.categorical import divergence
from didi.errors import UsageError

Loss = Literal["kl", "forward-kl", "mse", "tv"]


def step_size(round_number: int, first_step: int, teacher_steps: int) -> float:
    """Step size of the teacher in a round, in units of time.

    Args:
        round_number: number of the round, from 0.
        first_step: number of teacher steps from t = 1 to t = 0 in round 0; 1024 in the paper.
        teacher_steps: number of teacher steps K for each target, and factor of the step size between rounds.
    """
    return teacher_steps**round_number / first_step


def step_times(t: Float[Tensor, " b"], dt: float, teacher_steps: int) -> Float[Tensor, "k b"]:
    """Times t, t - dt, ..., t - (K - 1) dt before each of the teacher's K steps; negative times become 0."""
    shifts = dt * torch.arange(teacher_steps, dtype=t.dtype, device=t.device)
    return (t - shifts[:, None]).clamp(min=0)


def target_steps(is_masked: Bool[Tensor, "k b l"]) -> Bool[Tensor, "k b l"]:
    """Whether a teacher step gives the target: one step for each position that is masked at first, none for others.

    It is the step that reveals the position, or the last step if no step reveals it.

    Args:
        is_masked: masked positions of the states before each step; a revealed position remains revealed.
    """
    is_masked_after = torch.cat([is_masked[1:], torch.zeros_like(is_masked[:1])])
    return is_masked & ~is_masked_after


def distillation_loss(
    kind: Loss, target_log_probs: Float[Tensor, "n v"], student_log_probs: Float[Tensor, "n v"]
) -> Float[Tensor, " n"]:
    r"""Divergence of the student from its target at each masked position.

    Args:
        kind: ``kl`` is KL(student || target), the published default (``kl-bwd`` in the public code); ``forward-kl`` is
            KL(target || student) (``kl-fwd``); ``mse`` the mean squared difference of log-probabilities over the
            vocabulary, as in the public code; ``tv`` the total variation distance, in [0, 1]. The public code's
            ``tvd`` sums absolute differences of log-probabilities instead.
        target_log_probs: log-probabilities of the target, normalised; -inf at the same tokens as those of the student.
        student_log_probs: log-probabilities of the student, normalised.

    Returns:
        Nats for the KL divergences; float32 for float32 inputs.

    Raises:
        UsageError: no loss has that name.
    """
    if kind == "kl":
        return divergence("backward", target_log_probs, student_log_probs)
    if kind == "forward-kl":
        return divergence("forward", target_log_probs, student_log_probs)
    if kind == "mse":
        is_possible = target_log_probs > -torch.inf
        target, student = (rows.masked_fill(~is_possible, 0.0) for rows in (target_log_probs, student_log_probs))
        return (student - target).square().mean(-1)
    if kind == "tv":
        return (student_log_probs.exp() - target_log_probs.exp()).abs().sum(-1) / 2
    raise UsageError(f"loss is one of {', '.join(get_args(Loss))}; got {kind!r}")
