"""From a bundle to finished texts: the collector of ``stream``."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from didi.arguments import instance, whole_number
from didi.models.bundle import Bundle
from didi.sampling.memory import check_samples
from didi.sampling.options import SamplingOptions
from didi.sampling.prompt import decode
from didi.sampling.stream import Move, num_moves, options_from, stream
from didi.world import world


@dataclass(frozen=True)
class Generation:
    """A finished sample set.

    Attributes:
        tokens: clean tokens, no mask among them.
        texts: decoded texts; the token numbers, space separated, for a bundle without tokenizer.
        nfe: moves of the time grid, an upper bound on the network passes of a sequence.
        network_passes: passes of the sampled network that each sequence really needed.
        discriminator_passes: discriminator passes of each sequence, backward-to-input passes included.
        seed: seed of the set.
        precision: precision of the draws.
        sampler: name of the sampler.
        seconds: wall-clock time of the whole set.
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
    length: int | None = None,
    options: SamplingOptions | None = None,
    on_move: Callable[[Move], None] | None = None,
    **overrides: object,
) -> Generation:
    """Sample texts from a bundle; the processes of ``didi.world`` share the work, and each gets all of it.

    Args:
        bundle: from ``didi.load``.
        num_samples: number of sequences.
        nfe: moves of the time grid, at most so many network passes; None is ``bundle.default_nfe``. It is the length,
            whatever is asked, where passes follow no grid, and the number of moves of ``times`` where those are given.
        seed: of the random numbers of each sequence; see ``SequenceNoise``.
        prefix: text that every sequence begins with.
        infill: text whose [MASK]s are filled in.
        length: positions; the network's context length by default.
        options: sampler, role, precision and the like.
        on_move: called after every move of every batch.
        overrides: fields of ``SamplingOptions`` by name, instead of ``options``.

    Raises:
        UsageError: what is asked for does not exist or does not fit; see ``stream``.
        DidiError: logits are not finite, or memory runs out.
    """
    chosen, seed = options_from(options, overrides), whole_number("seed", seed)
    check_samples(instance("bundle", bundle, Bundle), chosen.role, num_samples, length)
    started = time.perf_counter()
    finished: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = {}
    for move in stream(
        bundle, num_samples=num_samples, nfe=nfe, seed=seed, prefix=prefix, infill=infill, length=length, options=chosen
    ):
        if on_move is not None:
            on_move(move)
        finished[move.indices] = move.tokens, move.network_passes, move.discriminator_passes
    drawn = [(tokens.cpu(), *passes) for tokens, *passes in finished.values()]
    tokens, network_passes, discriminator_passes = map(torch.cat, zip(*world().joined_items(drawn), strict=True))
    return Generation(
        tokens=tokens,
        texts=decode(bundle, tokens),
        nfe=num_moves(bundle, nfe, tokens.shape[1], chosen),
        network_passes=network_passes,
        discriminator_passes=discriminator_passes,
        seed=seed,
        precision=chosen.precision,
        sampler=chosen.sampler,
        seconds=time.perf_counter() - started,
    )
