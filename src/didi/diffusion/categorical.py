"""Exact categorical draws, entropies and divergences."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.errors import UsageError

Precision = Literal["float64", "float32"]
Divergence = Literal["forward", "backward", "jeffreys"]
CHUNK_ELEMENTS = 2**24  # of a cumulative distribution that exist at the same time: 128 MiB in float64


def sample_categorical(log_probs: Float[Tensor, "n v"], uniforms: Float[Tensor, "n *k"]) -> Int[Tensor, "n *k"]:
    """Draws from each row by inverting its cumulative distribution, in the precision of ``uniforms``.

    One uniform per row serves the whole vocabulary. With float64 uniforms the cumulative sum is float64 as well and
    every token keeps its probability down to about 1e-16; float32 logits give it to a relative error of about 1e-7.

    Args:
        log_probs: log-probabilities or unnormalised logits; -inf is probability 0.
        uniforms: numbers in [0, 1): one for each row, or ``k`` for as many independent draws from it.
    """
    num_rows = max(1, CHUNK_ELEMENTS // log_probs.shape[-1])
    chunks = zip(log_probs.split(num_rows), uniforms.split(num_rows), strict=True)
    return torch.cat([_invert_cdf(rows, numbers) for rows, numbers in chunks])


def sample_weights(weights: Float[Tensor, "n v"], uniforms: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """``sample_categorical`` of rows of non-negative numbers that are proportional to the probabilities."""
    return _inverted(weights.cumsum(dim=-1, dtype=uniforms.dtype), uniforms)


def _invert_cdf(log_probs: Float[Tensor, "n v"], uniforms: Float[Tensor, "n *k"]) -> Int[Tensor, "n *k"]:
    # Weights as exact as the logits are, float32 at least; their sums in the precision of the uniforms.
    log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    cdf = (log_probs - log_probs.amax(-1, keepdim=True)).exp_().cumsum(dim=-1, dtype=uniforms.dtype)
    return _inverted(cdf, uniforms)


def _inverted(cdf: Float[Tensor, "n v"], uniforms: Float[Tensor, "n *k"]) -> Int[Tensor, "n *k"]:
    # Scaling by the last entry makes the sum exactly 1; `right=True` never picks a token of probability 0.
    target = uniforms.reshape(len(cdf), math.prod(uniforms.shape[1:])) * cdf[:, -1:]
    drawn = torch.searchsorted(cdf, target, right=True).clamp_(max=cdf.shape[-1] - 1)
    return drawn.view(uniforms.shape)


def sample_gumbel(log_probs: Float[Tensor, "n v"], uniforms: Float[Tensor, "n v"]) -> Int[Tensor, " n"]:
    """One draw per row by the Gumbel trick, in the precision of ``uniforms``, as published samplers do it.

    With float32 uniforms the noise is truncated and rare tokens are never drawn, which lowers perplexity and entropy
    alike (Zheng et al. 2025, https://arxiv.org/abs/2409.02908). It exists to compare with such figures.
    """
    gumbel = (uniforms + 1e-10).log_().neg_().add_(1e-10).log_().neg_()  # in place: as large as a batch's vocabulary
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
        teacher_log_probs: normalised; -inf must be shared with the student.
        student_log_probs: normalised.

    Raises:
        UsageError: no divergence has that name.
    """
    if kind not in get_args(Divergence):
        raise UsageError(f"a divergence is one of {', '.join(get_args(Divergence))}; got {kind!r}")
    gap = teacher_log_probs - student_log_probs  # nan where both rule a token out, as they do the mask: not counted
    if kind == "forward":
        return _expectation(teacher_log_probs, gap)
    if kind == "backward":
        return -_expectation(student_log_probs, gap)
    return _expectation(teacher_log_probs, gap) - _expectation(student_log_probs, gap)


def _expectation(log_probs: Float[Tensor, "... v"], values: Float[Tensor, "... v"]) -> Float[Tensor, "..."]:
    """Expectation of ``values`` under ``log_probs``, with 0 * inf = 0 forward and backward."""
    is_possible = log_probs > -torch.inf
    return (log_probs.exp() * torch.where(is_possible, values, 0.0)).sum(-1)
