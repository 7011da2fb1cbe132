"""Replays: what sampling did to each position, move by move, with measured times."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from didi.models.bundle import Bundle
from didi.sampling.options import SamplingOptions
from didi.sampling.prompt import Frame, checked_lengths, decode
from didi.sampling.prompts import PromptSet
from didi.sampling.record import sampling_record
from didi.sampling.stream import Move, num_moves, stream

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ReplayMove:
    """One move of a sequence.

    Attributes:
        milliseconds: from the start of sampling to the end of the move.
        t: time of the process after the move, in [0, 1].
        passes: network passes so far.
        discriminator_passes: discriminator passes so far.
        positions: those whose token is another after the move.
        texts: their tokens; None for one that is masked again.
    """

    milliseconds: float
    t: float
    passes: int
    discriminator_passes: int
    positions: tuple[int, ...]
    texts: tuple[str | None, ...]


@dataclass(frozen=True)
class Lane:
    """One sequence from one network.

    Attributes:
        settings: from ``sampling_record``: model, role, sampler, moves and whatever else repeats the sample.
        seed: of the sample.
        tokens: text of each position before the first move; None where it is to be sampled.
        moves: in their order.
        text: the finished text.
    """

    settings: Mapping[str, Any]
    seed: int
    tokens: tuple[str | None, ...]
    moves: tuple[ReplayMove, ...]
    text: str

    @property
    def name(self) -> str:
        """Role, moves and sampler, for people."""
        role, sampler = self.settings["role"], self.settings["sampler"]
        return f"{role}, {self.settings['nfe']} moves, {'left to right' if role == 'autoregressive' else sampler}"

    def state_at(self, milliseconds: float) -> list[tuple[str | None, int]]:
        """Text of each position at a time (None for a mask) and the number of the move that it is from, 0 at first."""
        state: list[tuple[str | None, int]] = [(text, 0) for text in self.tokens]
        for number, move in enumerate(self.moves, start=1):
            if move.milliseconds <= milliseconds:
                for position, text in zip(move.positions, move.texts, strict=True):
                    state[position] = text, number
        return state

    @property
    def milliseconds(self) -> float:
        """Time of all moves."""
        return self.moves[-1].milliseconds if self.moves else 0.0

    def record(self) -> dict[str, Any]:
        """For JSON; the fields of the settings stand beside the others."""
        values = asdict(self)
        return {**values.pop("settings"), **values}


@dataclass(frozen=True)
class Replay:
    """Lanes of one prompt.

    Attributes:
        prompt: prefix or infill text; None for unconditional samples.
        lanes: one or more.
        machine: on which the times were measured.
    """

    prompt: str | None
    lanes: tuple[Lane, ...]
    machine: str

    def record(self) -> dict[str, Any]:
        """For JSON."""
        lanes = [one.record() for one in self.lanes]
        return {"version": FORMAT_VERSION, "prompt": self.prompt, "machine": self.machine, "lanes": lanes}


def record_lane(
    bundle: Bundle,
    *,
    nfe: int | None = None,
    seed: int = 0,
    prefix: str | None = None,
    infill: str | None = None,
    length: int | None = None,
    options: SamplingOptions | None = None,
    on_move: Callable[[Move], None] | None = None,
    loaded: Bundle | None = None,
) -> Lane:
    """Sample one sequence and record every move.

    The first move is made once before, unrecorded: times do not include what a process does once. The time of
    ``on_move`` and of the record itself is left out.

    Args:
        bundle: whose network is sampled.
        nfe: moves of the time grid; ``bundle.default_nfe`` by default.
        seed: of the sample, which is the first of ``generate`` with that seed.
        prefix: text that it begins with.
        infill: text whose [MASK]s are filled in.
        length: positions without begin and end symbols; the largest by default.
        options: sampler, role, precision and the like.
        on_move: called after every move.
        loaded: the bundle as it was loaded, where ``bundle`` has its networks in other numbers.

    Raises:
        UsageError: what is asked for does not exist or does not fit.
        DidiError: logits are not finite, or memory runs out.
    """
    chosen, network = options or SamplingOptions(), bundle.network(None if options is None else options.role)
    (length,) = checked_lengths(network, length)

    def moves() -> Iterator[Move]:
        return stream(bundle, nfe=nfe, seed=seed, prefix=prefix, infill=infill, length=length, options=chosen)

    next(moves())
    canvas = PromptSet.of(None, 1, seed, prefix, infill, (length,)).canvas(bundle, Frame.of(network))
    is_given = [not free for free in canvas.is_free[0].tolist()]
    start = shown_tokens(bundle, canvas.tokens[0].tolist(), is_given)
    # Uniform-state diffusion has a token at every position from the first state on.
    is_known = is_given if bundle.process.mask_id is not None else [True] * canvas.length
    recorded, before, ids = [], start, canvas.tokens[0].tolist()
    for move, ids, milliseconds in _timed(moves()):
        is_known = [old or new for old, new in zip(is_known, move.is_changed[0].tolist(), strict=True)]
        after = shown_tokens(bundle, ids, is_known)
        changed = tuple(position for position in range(canvas.length) if after[position] != before[position])
        passes, judged = int(move.network_passes[0]), int(move.discriminator_passes[0])
        texts = tuple(after[position] for position in changed)
        recorded.append(ReplayMove(milliseconds, move.t, passes, judged, changed, texts))
        before = after
        if on_move is not None:
            on_move(move)
    settings = sampling_record(loaded or bundle, chosen, nfe=num_moves(bundle, nfe, length, chosen), length=length)
    (text,) = decode(bundle, torch.tensor([ids]))
    return Lane(settings, seed, tuple(start), tuple(recorded), text)


def _timed(moves: Iterator[Move]) -> Iterator[tuple[Move, list[int], float]]:
    """Moves of one sequence, its token ids, and the milliseconds that were spent on moves so far."""
    seconds = 0.0
    while True:
        started = time.perf_counter()
        move = next(moves, None)
        if move is None:
            return
        ids = move.tokens[0].tolist()  # waits for the device
        seconds += time.perf_counter() - started
        yield move, ids, round(1000 * seconds, 3)


def shown_tokens(bundle: Bundle, ids: Sequence[int], is_known: Sequence[bool]) -> list[str | None]:
    """Text of each position; None for a mask or a position that is not known yet."""
    text = cache(lambda token: token_text(bundle, token))
    return [
        text(token) if known and token != bundle.process.mask_id else None
        for token, known in zip(ids, is_known, strict=True)
    ]


def token_text(bundle: Bundle, token: int) -> str:
    """What a token adds to the text before it: with its space, whether that belongs to the token or joins words."""
    (once,), (twice,) = (decode(bundle, torch.tensor([[token] * times])) for times in (1, 2))
    return twice[len(once) :]
