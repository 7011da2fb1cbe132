"""Finished samples from a bundle; ``generate`` collects the moves of ``stream``."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from didi.arguments import instance, whole_number
from didi.models.bundle import Bundle
from didi.process_group import process_group
from didi.sampling.memory import check_samples
from didi.sampling.options import SamplingOptions
from didi.sampling.prompt import Frame, checked_lengths
from didi.sampling.prompts import Prompt, PromptSet, checked_prompts
from didi.sampling.registry import sampler_of
from didi.sampling.stream import Move, num_moves, options_from, stream


@dataclass(frozen=True)
class Generation:
    """Finished samples: a whole set, or one batch of it.

    Attributes:
        tokens: clean tokens, no mask among them; begin and end symbols of proteins included.
        lengths: number of positions of each sequence; later positions are padding.
        texts: decoded texts; the token numbers, space separated, for a bundle without tokenizer.
        nfe: number of moves. A move takes at most one network pass, with ``reparam`` at most two.
        network_passes: passes of the sampled network that each sequence needed.
        discriminator_passes: discriminator passes of each sequence, backward-to-input passes included.
        seed: seed of the set; each prompt has its own seed (``didi.Prompt``).
        precision: precision of the draws.
        sampler: name of the sampler.
        seconds: wall-clock time of these samples, in seconds.
    """

    tokens: Int[Tensor, "n l"]
    lengths: Int[Tensor, " n"]
    texts: list[str]
    nfe: int
    network_passes: Int[Tensor, " n"]
    discriminator_passes: Int[Tensor, " n"]
    seed: int
    precision: str
    sampler: str
    seconds: float


def generate(
    bundle: Bundle,
    *,
    num_samples: int = 8,
    nfe: int | None = None,
    seed: int = 0,
    prefix: str | None = None,
    infill: str | None = None,
    prompts: Iterable[str | Prompt] | None = None,
    length: int | Sequence[int] | None = None,
    options: SamplingOptions | None = None,
    on_move: Callable[[Move], None] | None = None,
    **overrides: object,
) -> Generation:
    """Sample texts from a bundle; the processes of ``didi.process_group`` share the work.

    Each process returns all samples.

    Args:
        bundle: from ``didi.load``.
        num_samples: number of sequences; with ``prompts``, the number for each prompt.
        nfe: number of moves of the time grid; None is ``bundle.default_nfe``. It is ignored by samplers without a time
            grid, whose number of moves is at most the length, and with ``times``, which determine the number of moves.
        seed: seed of the random numbers of each sequence; see ``SequenceNoise``.
        prefix: text that every sequence begins with.
        infill: text whose [MASK]s are filled in.
        prompts: prompts of any lengths, instead of ``prefix`` and ``infill``: texts (with a [MASK] as ``infill``,
            others as ``prefix``) or ``Prompt`` records. The samples of a prompt do not depend on other prompts; samples
            of the first prompt come first.
        length: number of tokens of a text or residues of a protein. The samples of a prompt cycle through several
            lengths, unless ``Prompt.length`` is set. The default is the largest length that fits the context of the
            network.
        options: sampler, role, precision and further settings.
        on_move: called after every move of every batch.
        overrides: fields of ``SamplingOptions`` by name, instead of ``options``.

    Returns:
        The samples, ``num_samples`` sequences (for each prompt), with their texts and numbers of passes.

    Raises:
        UsageError: an argument is invalid or does not fit the bundle.
        DidiError: logits are not finite, or memory runs out.
    """
    started = time.perf_counter()
    chosen = options_from(options, overrides)
    batches = generate_batches(
        bundle,
        num_samples=num_samples,
        nfe=nfe,
        seed=seed,
        prefix=prefix,
        infill=infill,
        prompts=prompts,
        length=length,
        options=chosen,
        on_move=on_move,
    )
    samples = _concatenated(list(batches), Frame.of(bundle.network(chosen.role)).pad_id)
    return replace(samples, seconds=time.perf_counter() - started)


def generate_batches(
    bundle: Bundle,
    *,
    num_samples: int = 8,
    nfe: int | None = None,
    seed: int = 0,
    prefix: str | None = None,
    infill: str | None = None,
    prompts: Iterable[str | Prompt] | None = None,
    length: int | Sequence[int] | None = None,
    options: SamplingOptions | None = None,
    on_move: Callable[[Move], None] | None = None,
    **overrides: object,
) -> Iterator[Generation]:
    """As ``generate``, but yields each batch when it is finished. Several processes yield all samples at the end.

    Arguments are checked before the first batch; errors are those of ``generate``.
    """
    chosen, seed = options_from(options, overrides), whole_number("seed", seed)
    prompt_records = None if prompts is None else checked_prompts(prompts)
    network = instance("bundle", bundle, Bundle).network(chosen.role)
    prompt_set = PromptSet.of(prompt_records, num_samples, seed, prefix, infill, checked_lengths(network, length))
    longest, pad_id = prompt_set.checked_longest(network), Frame.of(network).pad_id
    check_samples(bundle, chosen.role, num_samples, longest, num_prompts=len(prompt_records or [None]))
    moves = stream(
        bundle,
        num_samples=num_samples,
        nfe=nfe,
        seed=seed,
        prefix=prefix,
        infill=infill,
        prompts=prompt_records,
        length=length,
        options=chosen,
    )

    def finished() -> Iterator[Generation]:
        started = time.perf_counter()
        for _, batch_moves in groupby(moves, lambda move: move.indices):
            for move in batch_moves:
                if on_move is not None:
                    on_move(move)
            yield Generation(
                tokens=move.tokens.cpu(),
                lengths=move.lengths,
                texts=move.texts,
                nfe=num_moves(bundle, nfe, longest, chosen),
                network_passes=move.network_passes,
                discriminator_passes=move.discriminator_passes,
                seed=seed,
                precision=chosen.precision,
                sampler=sampler_of(bundle, chosen),
                seconds=time.perf_counter() - started,
            )
            started = time.perf_counter()

    def of_all_processes() -> Iterator[Generation]:
        yield _concatenated(process_group().all_gather_items(list(finished())), pad_id)

    return finished() if process_group().size == 1 else of_all_processes()


def _concatenated(parts: Sequence[Generation], pad_id: int) -> Generation:
    """All batches as one sample set, padded to the same width; ``seconds`` is the sum."""
    width = max(part.tokens.shape[1] for part in parts)
    padded = (F.pad(part.tokens, (0, width - part.tokens.shape[1]), value=pad_id) for part in parts)
    return replace(
        parts[0],
        tokens=torch.cat(list(padded)),
        lengths=torch.cat([part.lengths for part in parts]),
        texts=[text for part in parts for text in part.texts],
        network_passes=torch.cat([part.network_passes for part in parts]),
        discriminator_passes=torch.cat([part.discriminator_passes for part in parts]),
        seconds=sum(part.seconds for part in parts),
    )
