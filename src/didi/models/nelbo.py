"""Negative log-likelihoods of token sequences: the NELBO of a denoiser, the exact NLL of an autoregressive network."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.models.autoregressive import AutoregressiveLM
from didi.models.denoiser import Denoiser, logits_at
from didi.models.networks import DenoiserNetwork
from didi.process_group import process_group


def nelbo_draws(
    denoiser: Denoiser,
    process: Process,
    canvas: Canvas,
    num_draws: int,
    generators: Sequence[torch.Generator],
) -> Float[Tensor, "b d"]:
    """Estimates of the NELBO of each sequence in nats, float64, whose mean is unbiased; one network pass for all.

    A network without noise level reads equal corrupted sequences once. These are frequent if few positions are free, or
    if sequences share a context and all other positions are masked.

    Args:
        denoiser: network that predicts clean tokens.
        process: process that corrupts them.
        canvas: clean tokens; given positions are context, never corrupted and not scored.
        num_draws: number d of estimates for each sequence, spread evenly over the noise levels.
        generators: one for each sequence.
    """
    drawn, copies = process.elbo_draws(canvas, num_draws, generators), canvas.repeat_interleave(num_draws)
    is_predicted = process.is_predicted(drawn.z)
    level = process.noise_level(denoiser, drawn.t)
    logits = _logits(denoiser, drawn.z, is_predicted, level, copies)
    terms = process.loss_terms(logits, copies.tokens, drawn.z, drawn.t)
    sums = torch.where(copies.is_free, terms, 0.0).double().sum(1)
    constant = drawn.prior_divergence * canvas.is_free.sum(1, keepdim=True).cpu()
    return (sums * drawn.weight).view(-1, num_draws).cpu() + constant


def _logits(
    denoiser: Denoiser,
    z: Int[Tensor, "b l"],
    is_predicted: Bool[Tensor, "b l"],
    level: Float[Tensor, " b"] | None,
    canvas: Canvas,
) -> Float[Tensor, "n v"]:
    """Logits at the predicted positions, in row-major order. Without a noise level, equal rows share a pass."""
    if level is None:
        keys = torch.cat([z, canvas.is_real.sum(1, keepdim=True)], dim=1)
        distinct, row_of = torch.unique(keys, dim=0, return_inverse=True)
        if len(distinct) < len(z):
            first = torch.empty(len(distinct), dtype=torch.long, device=z.device).scatter_(
                0, row_of, torch.arange(len(z), device=z.device)
            )
            is_read = is_predicted[first]
            logits = logits_at(denoiser, z[first], is_read, None, canvas.rows(first).attention_mask)
            number = torch.zeros_like(z[first]).masked_scatter(is_read, torch.arange(len(logits), device=z.device))
            return logits[number[row_of][is_predicted]]
    return logits_at(denoiser, z, is_predicted, level, canvas.attention_mask)


@torch.no_grad()
def nats_per_token(
    network: DenoiserNetwork | AutoregressiveLM,
    process: Process,
    rows: Int[Tensor, "n l"],
    *,
    batch_size: int,
    canvas_of: Callable[[Int[Tensor, "b l"]], Canvas] = Canvas.free,
) -> float:
    """Nats per free position over ``rows``: the exact NLL of an autoregressive network, or the NELBO, an upper bound.

    Corruptions are the same in every call. The processes of ``didi.process_group`` share each batch.

    Args:
        network: network that predicts tokens.
        process: process that corrupts them.
        rows: clean sequences; batches consist of sequences of similar length.
        batch_size: number of sequences in a batch.
        canvas_of: returns the canvas of rows, with their real and free positions; see ``Source.canvas``.
    """
    device = next(network.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    canvas = canvas_of(rows)
    order = canvas.is_real.sum(1).argsort(stable=True)
    for numbers in order.split(batch_size):
        local = process_group().local_rows(numbers)
        if not len(local):
            continue
        batch = canvas.rows(local).trimmed().to(device)
        if isinstance(network, AutoregressiveLM):
            total += torch.where(batch.is_free, network.nll(batch.tokens).double(), 0.0).sum()
            continue
        generators = [named_generator(0, "validation", row) for row in local.tolist()]
        total += nelbo_draws(network, process, batch, 1, generators).sum().to(device)
    return float(process_group().sum(total)) / int(canvas.num_free.sum())
