"""Exact categorical draws, entropies and divergences."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.errors import UsageError

Precision = Literal["float64", "float32"]
Divergence = Literal["forward", "backward", "jeffreys"]
CHUNK_ELEMENTS = 2**24  # entries of the cumulative distributions in memory at once, 128 MiB in float64


def sample_categorical(log_probs: Float[Tensor, "n v"], uniforms: Float[Tensor, "n *k"]) -> Int[Tensor, "n *k"]:
    """Draws from each row by inverting its cumulative distribution, in the precision of ``uniforms``.

    A draw takes one uniform number. With float64 uniforms the cumulative sum is float64 as well, so that tokens of a
    probability down to about 1e-16 can be drawn; float32 logits have a relative error of about 1e-7.

    Args:
        log_probs: log-probabilities or unnormalised logits; -inf is probability 0.
        uniforms: numbers in [0, 1): one for each row, or ``k`` for ``k`` independent draws from each row.
    """
    num_rows = max(1, CHUNK_ELEMENTS // log_probs.shape[-1])
    chunks = zip(log_probs.split(num_rows), uniforms.split(num_rows), strict=True)
    return torch.cat([_draw_from_log_probs(*chunk) for chunk in chunks])


def sample_from_weights(weights: Float[Tensor, "n v"], uniforms: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """As ``sample_categorical``, from non-negative weights that are proportional to the probabilities."""
    return _draw_from_cdf(weights.cumsum(dim=-1, dtype=uniforms.dtype), uniforms)


def _draw_from_log_probs(log_probs: Float[Tensor, "n v"], uniforms: Float[Tensor, "n *k"]) -> Int[Tensor, "n *k"]:
    # Weights in the precision of the logits, at least float32; cumulative sums in the precision of the uniforms.
    log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    cdf = (log_probs - log_probs.amax(-1, keepdim=True)).exp_().cumsum(dim=-1, dtype=uniforms.dtype)
    return _draw_from_cdf(cdf, uniforms)


def _draw_from_cdf(cdf: Float[Tensor, "n v"], uniforms: Float[Tensor, "n *k"]) -> Int[Tensor, "n *k"]:
    # Uniforms are scaled by the last entry, so the weights need not sum to 1. `right=True` skips tokens of probability
    # 0. The clamp is for a product that is rounded up to the last entry.
    target = uniforms.reshape(len(cdf), math.prod(uniforms.shape[1:])) * cdf[:, -1:]
    drawn = torch.searchsorted(cdf, target, right=True).clamp_(max=cdf.shape[-1] - 1)
    return drawn.view(uniforms.shape)


def gumbel_noise(uniforms: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Standard Gumbel noise from numbers in [0, 1); at 0 it is finite."""
    return -(-uniforms.clamp(min=torch.finfo(uniforms.dtype).tiny).log()).log()


def sample_gumbel(log_probs: Float[Tensor, "n v"], uniforms: Float[Tensor, "n v"]) -> Int[Tensor, " n"]:
    """One draw per row by the Gumbel trick, in the precision of ``uniforms``, as published samplers do it.

    With float32 uniforms the noise is truncated and rare tokens are never drawn, which lowers perplexity and entropy
    alike (Zheng et al. 2025, https://arxiv.org/abs/2409.02908). Use it to reproduce published numbers only.
    """
    gumbel = (uniforms + 1e-10).log_().neg_().add_(1e-10).log_().neg_()  # in place: the tensor is large
    return gumbel.add_(log_probs.to(uniforms.dtype)).argmax(-1)


def entropy(log_probs: Float[Tensor, "... v"]) -> Float[Tensor, "..."]:
    """Shannon entropy of each row in nats; -inf entries count as probability 0."""
    return -_expectation(log_probs, log_probs)


def divergence(
    kind: Divergence, teacher_log_probs: Float[Tensor, "... v"], student_log_probs: Float[Tensor, "... v"]
) -> Float[Tensor, "..."]:
    """Divergence between teacher and student in nats, row by row (App. F.3).

    Args:
        kind: ``forward`` is KL(teacher || student), ``backward`` KL(student || teacher), ``jeffreys`` their sum.
        teacher_log_probs: normalised; -inf at the same tokens as the student.
        student_log_probs: normalised.

    Raises:
        UsageError: no divergence has that name.
    """
    if kind not in get_args(Divergence):
        raise UsageError(f"a divergence is one of {', '.join(get_args(Divergence))}; got {kind!r}")
    gap = teacher_log_probs - student_log_probs  # nan where both are -inf, as at [MASK]; ignored below
    if kind == "forward":
        return _expectation(teacher_log_probs, gap)
    if kind == "backward":
        return -_expectation(student_log_probs, gap)
    return _expectation(teacher_log_probs, gap) - _expectation(student_log_probs, gap)


def _expectation(log_probs: Float[Tensor, "... v"], values: Float[Tensor, "... v"]) -> Float[Tensor, "..."]:
    """Expectation of ``values`` under ``log_probs``, with 0 * inf = 0 in value and gradient."""
    is_possible = log_probs > -torch.inf
    return (log_probs.exp() * torch.where(is_possible, values, 0.0)).sum(-1)
