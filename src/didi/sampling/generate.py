"""From a bundle to finished texts: the collector of ``stream``."""

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
from didi.sampling.prompt import Frame, decode, known_lengths
from didi.sampling.prompts import Prompt, known_prompts
from didi.sampling.registry import sampler_of
from didi.sampling.stream import Move, num_moves, options_from, stream


@dataclass(frozen=True)
class Generation:
    """Finished samples: a whole set, or a batch of one.

    Attributes:
        tokens: clean tokens, no mask among them; begin and end symbols of proteins included.
        lengths: positions of each sequence; what stands behind them is padding.
        texts: decoded texts; the token numbers, space separated, for a bundle without tokenizer.
        nfe: moves of the time grid, an upper bound on the network passes of a sequence.
        network_passes: passes of the sampled network that each sequence really needed.
        discriminator_passes: discriminator passes of each sequence, backward-to-input passes included.
        seed: seed of the set; prompts have seeds of their own (``didi.Prompt``).
        precision: precision of the draws.
        sampler: name of the sampler.
        seconds: wall-clock time of these samples.
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
    """Sample texts from a bundle; the processes of ``didi.process_group`` share the work, and each gets all of it.

    Args:
        bundle: from ``didi.load``.
        num_samples: number of sequences; with ``prompts``, for each of them.
        nfe: moves of the time grid; None is ``bundle.default_nfe``. A move takes at most one network pass, with
            ``reparam`` at most two. It is the length, whatever is asked, where passes follow no grid, and the number
            of moves of ``times`` where those are given.
        seed: of the random numbers of each sequence; see ``SequenceNoise``.
        prefix: text that every sequence begins with.
        infill: text whose [MASK]s are filled in.
        prompts: several of them, of any lengths, instead of ``prefix`` and ``infill``: texts (with a [MASK] as
            ``infill``, others as ``prefix``) or ``Prompt`` records. The samples of a prompt depend on no other prompt;
            those of the first prompt come first.
        length: tokens of a text or residues of a protein; of several lengths, the samples of a prompt take one after
            the other. The largest that fits the network's context by default.
        options: sampler, role, precision and the like.
        on_move: called after every move of every batch.
        overrides: fields of ``SamplingOptions`` by name, instead of ``options``.

    Raises:
        UsageError: what is asked for does not exist or does not fit; see ``stream``.
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
    whole = _concatenated(list(batches), Frame.of(bundle.network(chosen.role)).pad_id)
    return replace(whole, seconds=time.perf_counter() - started)


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
    """As ``generate``, batch by batch as they are finished; several processes yield all samples at once, at the end.

    Errors are those of ``generate``, before the first batch.
    """
    chosen, seed = options_from(options, overrides), whole_number("seed", seed)
    known = None if prompts is None else known_prompts(prompts)
    network = instance("bundle", bundle, Bundle).network(chosen.role)
    longest, pad_id = max(known_lengths(network, length)), Frame.of(network).pad_id
    check_samples(bundle, chosen.role, num_samples, longest, num_prompts=len(known or [None]))
    moves = stream(
        bundle,
        num_samples=num_samples,
        nfe=nfe,
        seed=seed,
        prefix=prefix,
        infill=infill,
        prompts=known,
        length=length,
        options=chosen,
    )

    def finished() -> Iterator[Generation]:
        started = time.perf_counter()
        for _, of_batch in groupby(moves, lambda move: move.indices):
            for move in of_batch:
                if on_move is not None:
                    on_move(move)
            tokens = move.tokens.cpu()
            yield Generation(
                tokens=tokens,
                lengths=move.lengths,
                texts=decode(bundle, tokens, move.lengths),
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
    """Batches as one set, padded to one width; ``seconds`` is their sum."""
    width = max(one.tokens.shape[1] for one in parts)
    padded = (F.pad(one.tokens, (0, width - one.tokens.shape[1]), value=pad_id) for one in parts)
    return replace(
        parts[0],
        tokens=torch.cat(list(padded)),
        lengths=torch.cat([one.lengths for one in parts]),
        texts=[text for one in parts for text in one.texts],
        network_passes=torch.cat([one.network_passes for one in parts]),
        discriminator_passes=torch.cat([one.discriminator_passes for one in parts]),
        seconds=sum(one.seconds for one in parts),
    )
