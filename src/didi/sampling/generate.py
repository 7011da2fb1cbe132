"""From a bundle to finished texts: the collector of ``stream``."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor

from didi.arguments import instance, whole_number
from didi.models.bundle import Bundle
from didi.sampling.memory import check_samples
from didi.sampling.options import SamplingOptions
from didi.sampling.prompt import decode
from didi.sampling.prompts import Prompt, known_prompts
from didi.sampling.registry import sampler_of
from didi.sampling.stream import Move, num_moves, options_from, stream
from didi.world import world


@dataclass(frozen=True)
class Generation:
    """Finished samples: a whole set, or a batch of one.

    Attributes:
        tokens: clean tokens, no mask among them.
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
    length: int | None = None,
    options: SamplingOptions | None = None,
    on_move: Callable[[Move], None] | None = None,
    **overrides: object,
) -> Generation:
    """Sample texts from a bundle; the processes of ``didi.world`` share the work, and each gets all of it.

    Args:
        bundle: from ``didi.load``.
        num_samples: number of sequences; with ``prompts``, for each of them.
        nfe: moves of the time grid, at most so many network passes; None is ``bundle.default_nfe``. It is the length,
            whatever is asked, where passes follow no grid, and the number of moves of ``times`` where those are given.
        seed: of the random numbers of each sequence; see ``SequenceNoise``.
        prefix: text that every sequence begins with.
        infill: text whose [MASK]s are filled in.
        prompts: several of them, of any lengths, instead of ``prefix`` and ``infill``: texts (with a [MASK] as
            ``infill``, others as ``prefix``) or ``Prompt`` records. The samples of a prompt depend on no other prompt;
            those of the first prompt come first.
        length: positions; the network's context length by default.
        options: sampler, role, precision and the like.
        on_move: called after every move of every batch.
        overrides: fields of ``SamplingOptions`` by name, instead of ``options``.

    Raises:
        UsageError: what is asked for does not exist or does not fit; see ``stream``.
        DidiError: logits are not finite, or memory runs out.
    """
    started = time.perf_counter()
    batches = generate_batches(
        bundle,
        num_samples=num_samples,
        nfe=nfe,
        seed=seed,
        prefix=prefix,
        infill=infill,
        prompts=prompts,
        length=length,
        options=options_from(options, overrides),
        on_move=on_move,
    )
    whole = _concatenated(list(batches))
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
    length: int | None = None,
    options: SamplingOptions | None = None,
    on_move: Callable[[Move], None] | None = None,
    **overrides: object,
) -> Iterator[Generation]:
    """As ``generate``, batch by batch as they are finished; several processes yield all samples at once, at the end.

    Raises:
        UsageError: as ``generate``, before the first batch.
    """
    chosen, seed = options_from(options, overrides), whole_number("seed", seed)
    known = None if prompts is None else known_prompts(prompts)
    num_prompts = 1 if known is None else len(known)
    check_samples(instance("bundle", bundle, Bundle), chosen.role, num_samples, length, num_prompts=num_prompts)
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
                texts=decode(bundle, tokens),
                nfe=num_moves(bundle, nfe, tokens.shape[1], chosen),
                network_passes=move.network_passes,
                discriminator_passes=move.discriminator_passes,
                seed=seed,
                precision=chosen.precision,
                sampler=sampler_of(bundle, chosen),
                seconds=time.perf_counter() - started,
            )
            started = time.perf_counter()

    def of_all_processes() -> Iterator[Generation]:
        yield _concatenated(world().joined_items(list(finished())))

    return finished() if world().size == 1 else of_all_processes()


def _concatenated(parts: Sequence[Generation]) -> Generation:
    """Batches as one set; ``seconds`` is their sum."""
    return replace(
        parts[0],
        tokens=torch.cat([one.tokens for one in parts]),
        texts=[text for one in parts for text in one.texts],
        network_passes=torch.cat([one.network_passes for one in parts]),
        discriminator_passes=torch.cat([one.discriminator_passes for one in parts]),
        seconds=sum(one.seconds for one in parts),
    )
