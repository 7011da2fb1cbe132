r"""How well a network predicts text that it never saw: the NELBO of a masked-diffusion one, the exact NLL of another.

The continuous-time NELBO, Eq. 3, needs no time at all: integrated over the masked share m of L positions,

.. math:: \int_0^1 \frac{dm}{m} \sum_n \mathrm{Bin}(n; L, m)\, f_n = \sum_{n=1}^{L} \frac{1}{n} f_n,

where :math:`f_n` is the expected cross-entropy, summed over n positions masked at random. So n is drawn uniformly from
1 to L and the sum weighted by L / n: without the cut at small times that a draw of t needs, and with less noise
(https://arxiv.org/abs/2406.03736, App. C; LLaDA, https://arxiv.org/abs/2502.09992, Eq. 6).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from didi.diffusion.masked import token_log_probs
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation.frontier import Interval, mean_interval
from didi.models.autoregressive import AutoregressiveLM
from didi.models.denoiser import logits_at, noise_level
from didi.models.dit import DiT

MIN_ALPHA = 1e-3  # as ``diffusion.schedule.sigma``


@dataclass(frozen=True)
class Likelihood:
    """What a network makes of a set of sequences.

    Attributes:
        nats: per token; an upper bound on the NLL unless ``is_exact``.
        nats_ci: 95% bootstrap interval over sequences.
        noise: standard error of ``nats`` that comes from the random masks; 0 if exact.
        num_sequences: scored.
        num_tokens: scored.
        num_draws: masks drawn for each sequence.
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
        """Per token, an upper bound unless ``is_exact``."""
        return math.exp(self.nats)

    @property
    def perplexity_ci(self) -> Interval:
        """95% interval of the perplexity."""
        low, high = self.nats_ci
        return math.exp(low), math.exp(high)


@torch.no_grad()
def likelihood(
    network: DiT | AutoregressiveLM,
    rows: Int[Tensor, "n l"],
    *,
    num_draws: int = 16,
    batch_size: int = 32,
    seed: int = 0,
) -> Likelihood:
    """Likelihood of ``rows`` under a network.

    Args:
        network: a denoiser, which is scored by its NELBO, or an autoregressive network, which is scored exactly.
        rows: clean tokens.
        num_draws: masks of each sequence; their sizes are spread evenly over 1 to l.
        batch_size: masked sequences in one pass.
        seed: of the masks; a sequence has the same ones whatever the batch size and however many rows follow.

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
                nelbo_draws(network, batch.to(device), num_draws, list(itertools.islice(generators, len(batch))))
                for batch in rows.split(max(1, batch_size // num_draws))
            ]
        )
    means = values.mean(1) / rows.shape[1]
    is_exact = isinstance(network, AutoregressiveLM)
    # Even spreading makes the draws vary less than independent ones, so this errs on the large side.
    spread = values.var(1) / values.shape[1] if values.shape[1] > 1 else torch.full_like(means, math.nan)
    return Likelihood(
        nats=float(means.mean()),
        nats_ci=mean_interval(means),
        noise=0.0 if is_exact else float(spread.sum().sqrt()) / rows.numel(),
        num_sequences=len(rows),
        num_tokens=rows.numel(),
        num_draws=1 if is_exact else num_draws,
        is_exact=is_exact,
    )


def nelbo_draws(
    denoiser: DiT,
    x0: Int[Tensor, "b l"],
    num_draws: int,
    generators: Sequence[torch.Generator],
    *,
    context: int = 0,
) -> Float[Tensor, "b d"]:
    """Unbiased one-mask estimates of the NELBO of each sequence, in nats, float64; one pass for all.

    Args:
        denoiser: gives the law of masked tokens.
        x0: clean sequences.
        num_draws: estimates of each; the sizes of their masks are spread evenly over 1 to the number of tokens scored.
        generators: of the masks of each sequence.
        context: leading tokens that are given, never masked, and not scored.
    """
    length = x0.shape[1] - context
    draws = [_mask(num_draws, length, generator) for generator in generators]
    is_masked, share, size = (torch.cat(parts).to(x0.device) for parts in zip(*draws, strict=True))
    is_masked = F.pad(is_masked, (context, 0))
    copies = x0.repeat_interleave(num_draws, 0)
    level = noise_level(denoiser, -(1 - share).clamp_min(MIN_ALPHA).log().float())
    logits = logits_at(denoiser, copies.masked_fill(is_masked, denoiser.mask_id), is_masked, level)
    nll = -token_log_probs(logits, denoiser.mask_id).gather(1, copies[is_masked].unsqueeze(1)).squeeze(1)
    sums = torch.zeros(copies.shape, device=x0.device).masked_scatter(is_masked, nll).double().sum(1)
    return (sums * length / size).view(-1, num_draws).cpu()


def _mask(
    num_draws: int, length: int, generator: torch.Generator
) -> tuple[Bool[Tensor, "d l"], Float[Tensor, " d"], Int[Tensor, " d"]]:
    """Random masks whose sizes n are spread evenly over 1 to l; the share m given n, Beta(n, l - n + 1); the sizes.

    The n-th smallest of l uniform numbers is such a share, and those up to it are such a mask.
    """
    shifts = torch.rand(num_draws, dtype=torch.float64, generator=generator)
    size = ((torch.arange(num_draws) + shifts) / num_draws * length).long() + 1
    uniforms = torch.rand(num_draws, length, dtype=torch.float64, generator=generator)
    share = uniforms.sort(1).values.gather(1, size.unsqueeze(1) - 1)
    return uniforms <= share, share.squeeze(1), size
