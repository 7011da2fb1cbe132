"""Likelihood of held-out sequences under a network, with confidence intervals; see ``models.nelbo``."""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation.frontier import Interval, mean_interval
from didi.models.autoregressive import AutoregressiveLM
from didi.models.nelbo import nelbo_draws
from didi.models.networks import DenoiserNetwork


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of a set of sequences under a network.

    Attributes:
        nats: NLL per token in nats; an upper bound unless ``is_exact``.
        nats_ci: 95% bootstrap interval of ``nats`` over sequences.
        noise: standard error of ``nats`` due to the random masks, nats; 0 if ``is_exact``, NaN for a single mask.
        num_sequences: number of scored sequences.
        num_tokens: number of scored tokens.
        num_draws: number of random masks for each sequence; 1 if ``is_exact``.
        is_exact: whether ``nats`` is the NLL itself.
    """

    nats: float
    nats_ci: Interval
    noise: float
    num_sequences: int
    num_tokens: int
    num_draws: int
    is_exact: bool

    @property
    def perplexity(self) -> float:
        """Perplexity per token; an upper bound unless ``is_exact``."""
        return math.exp(self.nats)

    @property
    def perplexity_ci(self) -> Interval:
        """95% interval of the perplexity."""
        low, high = self.nats_ci
        return math.exp(low), math.exp(high)


@torch.no_grad()
def likelihood(
    network: DenoiserNetwork | AutoregressiveLM,
    process: Process,
    rows: Int[Tensor, "n l"],
    *,
    num_draws: int = 16,
    batch_size: int = 32,
    seed: int = 0,
) -> Likelihood:
    """Likelihood of ``rows`` under a network: the NELBO of a denoiser, or the exact NLL of an autoregressive network.

    Args:
        network: a denoiser or an autoregressive network.
        process: diffusion process of the denoiser.
        rows: clean tokens.
        num_draws: number of random masks of each sequence, whose sizes are spread evenly over 1 to l; in uniform-state
            diffusion, of corruptions at evenly spread noise levels.
        batch_size: number of masked sequences in one pass.
        seed: random seed of the masks, which depend on the number of the row only, not on the batch size.

    Raises:
        UsageError: there are no rows, or ``num_draws`` is below 1.
    """
    if not len(rows) or num_draws < 1:
        raise UsageError(f"a likelihood needs a sequence and a draw or more; got {len(rows)} and {num_draws}")
    device = next(network.parameters()).device
    if isinstance(network, AutoregressiveLM):
        exact = [network.nll(batch.to(device)).double().sum(1).cpu() for batch in rows.split(batch_size)]
        values = torch.cat(exact).unsqueeze(1)
    else:
        generators = (named_generator(seed, "likelihood", number) for number in range(len(rows)))
        values = torch.cat(
            [
                nelbo_draws(
                    network,
                    process,
                    Canvas.free(batch.to(device)),
                    num_draws,
                    list(itertools.islice(generators, len(batch))),
                )
                for batch in rows.split(max(1, batch_size // num_draws))
            ]
        )
    means = values.mean(1) / rows.shape[1]
    is_exact = isinstance(network, AutoregressiveLM)
    # Variance of the mean for independent draws. Mask sizes are spread evenly, so the actual variance is smaller.
    variance = values.var(1) / values.shape[1] if values.shape[1] > 1 else torch.full_like(means, math.nan)
    return Likelihood(
        nats=float(means.mean()),
        nats_ci=mean_interval(means),
        noise=0.0 if is_exact else float(variance.sum().sqrt()) / rows.numel(),
        num_sequences=len(rows),
        num_tokens=rows.numel(),
        num_draws=1 if is_exact else num_draws,
        is_exact=is_exact,
    )
