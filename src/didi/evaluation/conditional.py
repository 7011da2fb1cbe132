"""Batched likelihoods of continuations given their contexts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import time_at
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.models.denoiser import logits_at
from didi.models.nelbo import nelbo_draws
from didi.models.networks import DenoiserNetwork

LENGTH_STEP = 8  # batch widths are multiples of it, so that the padding of a sequence does not depend on its batch
MAX_BATCH_TOKENS = 2**14  # padding included


@dataclass(frozen=True)
class Continuation:
    """A token sequence whose first ``num_given`` tokens are the context.

    Attributes:
        ids: Token ids of context and continuation.
        num_given: Number of tokens of the context, 0 or more.
        name: Determines the random masks of the sequence, together with the seed.
    """

    ids: Sequence[int]
    num_given: int
    name: tuple[int | str, ...] = ()


def padded_length(length: int, longest: int) -> int:
    """Batch width of a sequence: the next multiple of ``LENGTH_STEP``, at most ``longest``."""
    return min(longest, -(-length // LENGTH_STEP) * LENGTH_STEP)


def padded_canvas(rows: Sequence[Continuation], width: int) -> Canvas:
    """A canvas of ``width`` positions: contexts are given, continuations are free, the rest is padding."""
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    for row, filled in zip(rows, tokens, strict=True):
        filled[: len(row.ids)] = torch.tensor(row.ids, dtype=torch.long)
    lengths = torch.tensor([len(row.ids) for row in rows])
    position = torch.arange(width)
    is_real = position < lengths[:, None]
    is_free = is_real & (position >= torch.tensor([row.num_given for row in rows])[:, None])
    return Canvas(tokens, is_free, is_real, has_padding=bool((lengths < width).any()))


@torch.no_grad()
def log_likelihoods(
    network: DenoiserNetwork | AutoregressiveLM,
    process: Process,
    continuations: Sequence[Continuation],
    *,
    num_draws: int = 32,
    seed: int = 0,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> Float[Tensor, " n"]:
    """Log-likelihood of each continuation in nats given its context; for a denoiser, the ELBO, a lower bound.

    Args:
        network: An autoregressive network or a denoiser.
        process: Diffusion process of the denoiser.
        continuations: Sequences, each at most as long as the network's context.
        num_draws: Number of random masks of each continuation, for a denoiser.
        seed: Random seed of the masks; the masks of a continuation depend on the seed and its name only.
        max_batch_tokens: Maximum number of tokens in one pass, with padding and all masks of a sequence.

    Returns:
        The log-likelihoods, float64, on the CPU.
    """
    log_probs = torch.zeros(len(continuations), dtype=torch.float64)
    copies = 1 if isinstance(network, AutoregressiveLM) else num_draws
    for index, canvas in _batches(network, continuations, max_batch_tokens // copies):
        if isinstance(network, AutoregressiveLM):
            nats = torch.where(canvas.is_free, network.nll(canvas.tokens), 0.0).double().sum(1)
        else:
            generators = [named_generator(seed, *continuations[number].name) for number in index]
            nats = nelbo_draws(network, process, canvas, num_draws, generators).mean(1)
        log_probs[index] = -nats.cpu()
    return log_probs


@torch.no_grad()
def are_greedy(
    network: DenoiserNetwork | AutoregressiveLM,
    process: Process,
    continuations: Sequence[Continuation],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> Bool[Tensor, " n"]:
    """Whether greedy decoding produces each continuation; a denoiser reveals the most probable token first.

    Arguments as in ``log_likelihoods``.

    Raises:
        UsageError: The process of a denoiser has no masks.
    """
    if not isinstance(network, AutoregressiveLM) and not isinstance(process, Absorbing):
        raise UsageError(f"greedy decoding reveals masks, and {process.name} diffusion has none; choose another task")
    is_greedy = torch.ones(len(continuations), dtype=torch.bool)
    for index, canvas in _batches(network, continuations, max_batch_tokens):
        if isinstance(network, AutoregressiveLM):
            best = network.likeliest(canvas.tokens)
            is_greedy[index] = ((best == canvas.tokens) | ~canvas.is_free).all(1).cpu()
        else:
            assert isinstance(process, Absorbing)
            is_greedy[index] = _revealed_greedily(network, process, canvas).cpu()
    return is_greedy


def _revealed_greedily(network: DenoiserNetwork, process: Absorbing, canvas: Canvas) -> Bool[Tensor, " b"]:
    """Whether greedy decoding reveals the tokens of the canvas; a sequence stops at its first different token."""
    z, is_right = process.prior(canvas), torch.ones(len(canvas), dtype=torch.bool, device=canvas.tokens.device)
    while True:
        is_masked = canvas.is_free & process.is_predicted(z) & is_right[:, None]
        (active,) = is_masked.any(1).nonzero(as_tuple=True)
        if not len(active):
            return is_right
        rows, is_masked = canvas.rows(active), is_masked[active]
        share = is_masked.double().sum(1) / rows.is_real.sum(1)
        t = time_at(process.schedule, 1 - share)  # time at which this share of masks is expected
        logits = logits_at(network, z[active], is_masked, process.noise_level(network, t), rows.attention_mask)
        confidence, best = process.log_probs(logits).max(-1)
        scores = torch.full(is_masked.shape, -torch.inf, device=z.device).masked_scatter(is_masked, confidence)
        position = scores.argmax(1)
        choices = torch.zeros_like(rows.tokens).masked_scatter(is_masked, best)
        row = torch.arange(len(active), device=z.device)
        is_right[active] = choices[row, position] == rows.tokens[row, position]
        z[active, position] = choices[row, position]


def _batches(
    network: DenoiserNetwork | AutoregressiveLM, continuations: Sequence[Continuation], max_tokens: int
) -> Iterator[tuple[list[int], Canvas]]:
    """Batches of sequences of similar lengths, with their indices; sequences without a free token are left out."""
    groups: dict[int, list[int]] = {}
    for number, each in enumerate(continuations):
        if len(each.ids) > each.num_given:
            groups.setdefault(padded_length(len(each.ids), network.length), []).append(number)
    device = next(network.parameters()).device
    for width, members in groups.items():
        size = max(1, max_tokens // width)
        for begin in range(0, len(members), size):
            index = members[begin : begin + size]
            yield index, padded_canvas([continuations[number] for number in index], width).to(device)
