"""Likelihoods of continuations given their contexts, many in one network pass."""

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

LENGTH_STEP = 8  # widths of batches are multiples of it, so that a sequence is padded alike whatever its batch
MAX_BATCH_TOKENS = 2**14


@dataclass(frozen=True)
class Continuation:
    """Tokens of which the first ``num_given`` are a context.

    Attributes:
        ids: Token ids.
        num_given: Tokens of the context, 0 or more.
        name: What the random masks depend on beside the seed.
    """

    ids: Sequence[int]
    num_given: int
    name: tuple[int | str, ...] = ()


def padded_length(length: int, longest: int) -> int:
    """Width of the batch that a sequence goes into: a multiple of ``LENGTH_STEP``, at most ``longest``."""
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
    """Log-likelihood of each continuation in nats given its context; for a denoiser a lower bound, the NELBO.

    Args:
        network: An autoregressive network or a denoiser.
        process: Of the denoiser.
        continuations: At most the network's context length each.
        num_draws: Masks of each continuation under a denoiser.
        seed: Of the masks; those of a continuation depend on nothing else but its name.
        max_batch_tokens: Tokens in one pass, padding and draws included.

    Returns:
        Float64, on the CPU.
    """
    found = torch.zeros(len(continuations), dtype=torch.float64)
    copies = 1 if isinstance(network, AutoregressiveLM) else num_draws
    for index, canvas in _batches(network, continuations, max_batch_tokens // copies):
        if isinstance(network, AutoregressiveLM):
            nats = torch.where(canvas.is_free, network.nll(canvas.tokens), 0.0).double().sum(1)
        else:
            generators = [named_generator(seed, *continuations[number].name) for number in index]
            nats = nelbo_draws(network, process, canvas, num_draws, generators).mean(1)
        found[index] = -nats.cpu()
    return found


@torch.no_grad()
def are_greedy(
    network: DenoiserNetwork | AutoregressiveLM,
    process: Process,
    continuations: Sequence[Continuation],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> Bool[Tensor, " n"]:
    """Whether the likeliest choices write each continuation; a denoiser reveals its surest token first.

    Arguments as of ``log_likelihoods``.

    Raises:
        UsageError: The process of a denoiser has no masks.
    """
    if not isinstance(network, AutoregressiveLM) and not isinstance(process, Absorbing):
        raise UsageError(f"greedy decoding reveals masks, and {process.name} diffusion has none; choose another task")
    found = torch.ones(len(continuations), dtype=torch.bool)
    for index, canvas in _batches(network, continuations, max_batch_tokens):
        if isinstance(network, AutoregressiveLM):
            best = network.likeliest(canvas.tokens)
            found[index] = ((best == canvas.tokens) | ~canvas.is_free).all(1).cpu()
        else:
            assert isinstance(process, Absorbing)
            found[index] = _revealed_greedily(network, process, canvas).cpu()
    return found


def _revealed_greedily(network: DenoiserNetwork, process: Absorbing, canvas: Canvas) -> Bool[Tensor, " b"]:
    """Whether every choice of greedy decoding is the token of the canvas; a sequence ends with its first other one."""
    z, is_right = process.prior(canvas), torch.ones(len(canvas), dtype=torch.bool, device=canvas.tokens.device)
    while True:
        is_masked = canvas.is_free & process.is_predicted(z) & is_right[:, None]
        (active,) = is_masked.any(1).nonzero(as_tuple=True)
        if not len(active):
            return is_right
        rows, is_masked = canvas.rows(active), is_masked[active]
        share = is_masked.double().sum(1) / rows.is_real.sum(1)
        t = time_at(process.schedule, 1 - share)  # at which as many masks are expected
        logits = logits_at(network, z[active], is_masked, process.noise_level(network, t), rows.attention_mask)
        surest, best = process.log_probs(logits).max(-1)
        position = torch.full(is_masked.shape, -torch.inf, device=z.device).masked_scatter(is_masked, surest).argmax(1)
        choices = torch.zeros_like(rows.tokens).masked_scatter(is_masked, best)
        row = torch.arange(len(active), device=z.device)
        is_right[active] = choices[row, position] == rows.tokens[row, position]
        z[active, position] = choices[row, position]


def _batches(
    network: DenoiserNetwork | AutoregressiveLM, continuations: Sequence[Continuation], max_tokens: int
) -> Iterator[tuple[list[int], Canvas]]:
    """Sequences of like length in one batch, with their numbers; those without a free token are left out."""
    groups: dict[int, list[int]] = {}
    for number, one in enumerate(continuations):
        if len(one.ids) > one.num_given:
            groups.setdefault(padded_length(len(one.ids), network.length), []).append(number)
    device = next(network.parameters()).device
    for width, members in groups.items():
        size = max(1, max_tokens // width)
        for begin in range(0, len(members), size):
            index = members[begin : begin + size]
            yield index, padded_canvas([continuations[number] for number in index], width).to(device)
