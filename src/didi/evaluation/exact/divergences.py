"""Divergences between distributions that are known exactly."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from didi.errors import UsageError


@dataclass(frozen=True)
class ExactDivergences:
    """Divergences of the distribution p of a sampler from the distribution q of the data.

    Attributes:
        kl: KL(p || q), nats a sequence; infinite if p draws a sequence of probability 0 under q. Dominated by samples
            that are unlikely under q.
        reverse_kl: KL(q || p), nats a sequence; infinite if p never draws a sequence of q. Dominated by sequences that
            are too rare under p.
        total_variation: half the sum of absolute differences, in [0, 1].
        joint_entropy: entropy of p over whole sequences, nats a sequence.
        note: which part of p is estimated rather than exact; empty if none.
    """

    kl: float
    reverse_kl: float
    total_variation: float
    joint_entropy: float
    note: str = ""


def exact_divergences(p: Float[Tensor, " c"], log_q: Float[Tensor, " c"]) -> ExactDivergences:
    """Divergences of a sampler's distribution from that of the data.

    Args:
        p: probabilities of the sampler, float64.
        log_q: log-probabilities of the data in the same order, nats, float64.

    Raises:
        UsageError: ``p`` is not a distribution.
    """
    if bool((p < 0).any()) or not abs(float(p.sum()) - 1) <= 1e-6:  # also if it is NaN
        raise UsageError(f"p is a distribution; got a sum of {float(p.sum())} and a minimum of {float(p.min())}")
    q, log_p = log_q.exp(), p.log()
    return ExactDivergences(
        kl=_kl(p, log_p, log_q),
        reverse_kl=_kl(q, log_q, log_p),
        total_variation=float((p - q).abs().sum() / 2),
        joint_entropy=-float(torch.where(p > 0, p * log_p, 0.0).sum()),
    )


def _kl(p: Float[Tensor, " c"], log_p: Float[Tensor, " c"], log_q: Float[Tensor, " c"]) -> float:
    return float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum())
