"""Sampling move by move: the entry point of the API, the command line and the evaluation."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from didi.arguments import instance, whole_number
from didi.diffusion.canvas import Canvas
from didi.errors import DidiError, UsageError
from didi.models.bundle import Bundle
from didi.process_group import process_group
from didi.sampling.base import Sampler, checked_nfe, refuse_equal_rates
from didi.sampling.draw_check import are_draws_checked
from didi.sampling.memory import check_batch, out_of_memory
from didi.sampling.options import SamplingOptions
from didi.sampling.prompt import Frame, checked_lengths, decode
from didi.sampling.prompts import Prompt, PromptSet
from didi.sampling.registry import make_sampler, moves_without_grid, sampler_of
from didi.torch_defaults import each_with_torch_defaults, with_torch_defaults


@dataclass(frozen=True)
class Move:
    """A batch of sequences after a move.

    Attributes:
        indices: numbers of the sequences in the sample set.
        tokens: the state; [MASK] where masked diffusion has not revealed a token yet.
        is_changed: positions that the move changed.
        t: time after the move, in [0, 1].
        number: number of the move, from 1; 0 if there was nothing to sample.
        network_passes: number of passes of the sampled network for each sequence so far.
        discriminator_passes: number of discriminator passes for each sequence so far, backward-to-input passes
            included.
        lengths: number of positions of each sequence, begin and end symbols included; later positions are padding.
        bundle: bundle with the tokenizer.
    """

    indices: tuple[int, ...]
    tokens: Int[Tensor, "b l"]
    is_changed: Bool[Tensor, "b l"]
    t: float
    number: int
    network_passes: Int[Tensor, " b"]
    discriminator_passes: Int[Tensor, " b"]
    lengths: Int[Tensor, " b"]
    bundle: Bundle

    @property
    def texts(self) -> list[str]:
        """The state as texts."""
        return decode(self.bundle, self.tokens, self.lengths)


def options_from(options: SamplingOptions | None, overrides: dict[str, object]) -> SamplingOptions:
    """``options``, or ``SamplingOptions`` with the fields of ``overrides`` if ``options`` is None.

    Raises:
        UsageError: both are given, or a field does not exist.
    """
    if options is not None:
        if overrides:
            raise UsageError("give options or their fields by name, not both")
        return instance("options", options, SamplingOptions)
    names = [field.name for field in fields(SamplingOptions)]
    if unknown := set(overrides) - set(names):
        raise UsageError(f"options are {', '.join(names)}; got {', '.join(sorted(unknown))}")
    return SamplingOptions(**overrides)  # type: ignore[arg-type]


@with_torch_defaults
def stream(
    bundle: Bundle,
    *,
    num_samples: int = 1,
    nfe: int | None = None,
    seed: int = 0,
    prefix: str | None = None,
    infill: str | None = None,
    prompts: Iterable[str | Prompt] | None = None,
    length: int | Sequence[int] | None = None,
    options: SamplingOptions | None = None,
    **overrides: object,
) -> Iterator[Move]:
    """Sample from a bundle and yield the state after every move; the last move of a batch holds its finished sequences.

    Each process of a distributed run yields the moves of its own sequences. Arguments are those of ``generate``; they
    are checked at the call, before the first move.

    Raises:
        UsageError: an argument is invalid or does not fit the bundle.
        DidiError: logits are not finite, or memory runs out; raised while the moves are iterated.
    """
    chosen, bundle = options_from(options, overrides), instance("bundle", bundle, Bundle)
    network, seed = bundle.network(chosen.role), whole_number("seed", seed)
    num_samples = whole_number("num_samples", num_samples, low=1)
    lengths, frame = checked_lengths(network, length), Frame.of(network)
    prompt_set = PromptSet.of(prompts, num_samples, seed, prefix, infill, lengths)
    longest = prompt_set.checked_longest(network)
    most_moves = num_moves(bundle, nfe, longest, chosen)
    sampler, times = make_sampler(bundle, chosen, most_moves), chosen.move_times(most_moves)
    if chosen.times:
        refuse_equal_rates(bundle.process.schedule, times)
    check_batch(bundle, chosen, longest + frame.num_ids, most_moves, len(prompt_set))
    device = next(network.parameters()).device
    canvas = prompt_set.canvas(bundle, frame).to(device)

    def moves(indices: Sequence[int]) -> Iterator[Move]:
        no_passes = torch.zeros(len(indices), dtype=torch.long)
        network_passes, discriminator_passes, number = no_passes, no_passes, 0
        rows = prompt_set.rows(canvas, indices)
        noise, z, row_lengths = prompt_set.noise(rows, indices), rows.tokens, rows.is_real.sum(1).cpu()
        for number, step in enumerate(sampler(rows, times, noise), start=1):
            network_passes = network_passes + step.network_passes
            discriminator_passes, z = discriminator_passes + step.discriminator_passes, step.z
            passes = (network_passes, discriminator_passes)
            yield Move(tuple(indices), z, step.is_changed, step.t, number, *passes, row_lengths, bundle)
        if not number:  # no position is free
            changed = torch.zeros_like(rows.is_free)
            yield Move(tuple(indices), z, changed, 0.0, 0, no_passes, no_passes, row_lengths, bundle)
            return
        check_finished(sampler, z, rows, bundle.process.mask_id)

    def batches() -> Iterator[Move]:
        local = range(len(prompt_set))[process_group().local_slice(len(prompt_set))]
        for begin in range(0, len(local), chosen.batch_size):
            indices = local[begin : begin + chosen.batch_size]
            with out_of_memory(len(indices)):
                yield from moves(indices)

    return each_with_torch_defaults(batches())


def check_finished(sampler: Sampler, z: Int[Tensor, "b l"], canvas: Canvas, mask_id: int | None) -> None:
    """Refuse a finished batch with a [MASK] left, or with tokens drawn from logits that are not finite.

    Raises:
        DidiError: the batch is refused.
    """
    sampler.token_distribution.draw_check.finish()
    if mask_id is not None and are_draws_checked() and bool((canvas.is_free & (z == mask_id)).any()):
        raise DidiError("a finished sample holds no [MASK]; this sampler left one: report it")


def num_moves(bundle: Bundle, nfe: int | None, length: int, options: SamplingOptions) -> int:
    """Number of moves of a sample set.

    It is ``length`` for samplers without a time grid, follows from ``options.times`` if they are set, and is ``nfe``
    otherwise.

    Raises:
        UsageError: ``nfe`` is not a whole number in [1, ``MAX_NFE``], or the sampler does not support it.
    """
    name = sampler_of(bundle, options)
    if (fixed := moves_without_grid(bundle.network(options.role), name, length)) is not None:
        nfe = None if nfe is None else whole_number("nfe", nfe, low=1)
        if name == "one-step" and nfe not in (None, fixed):
            raise UsageError(f"one-step sampling has nfe 1; got {nfe}: leave nfe out, or choose another sampler")
        return fixed
    nfe = checked_nfe(bundle.default_nfe(options.role) if nfe is None else nfe)
    return len(options.move_times(1)) - 1 if options.times else nfe
