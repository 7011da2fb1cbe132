"""Replays: records of sampling, move by move, with measured times."""

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
        milliseconds: time from the start of sampling to the end of the move.
        t: time of the diffusion process after the move, in [0, 1].
        passes: network passes so far.
        discriminator_passes: discriminator passes so far.
        positions: positions whose token the move changed.
        texts: new texts of these positions; None for [MASK].
    """

    milliseconds: float
    t: float
    passes: int
    discriminator_passes: int
    positions: tuple[int, ...]
    texts: tuple[str | None, ...]


@dataclass(frozen=True)
class Lane:
    """One sequence of one network, and all its moves.

    Attributes:
        settings: output of ``sampling_record``: model, role, sampler, moves and all other settings of the sample.
        seed: seed of the sample.
        tokens: text of each position before the first move; None for positions to be sampled.
        moves: all moves, in order.
        text: the finished text.
    """

    settings: Mapping[str, Any]
    seed: int
    tokens: tuple[str | None, ...]
    moves: tuple[ReplayMove, ...]
    text: str

    @property
    def name(self) -> str:
        """Role, number of moves and sampler, as a title."""
        role, sampler = self.settings["role"], self.settings["sampler"]
        return f"{role}, {self.settings['nfe']} moves, {'left to right' if role == 'autoregressive' else sampler}"

    def state_at(self, milliseconds: float) -> list[tuple[str | None, int]]:
        """Text of each position at a time, None for [MASK], with the number of the move that set it, 0 for no move."""
        state: list[tuple[str | None, int]] = [(text, 0) for text in self.tokens]
        for number, move in enumerate(self.moves, start=1):
            if move.milliseconds <= milliseconds:
                for position, text in zip(move.positions, move.texts, strict=True):
                    state[position] = text, number
        return state

    @property
    def milliseconds(self) -> float:
        """Time until the end of the last move; 0 without moves."""
        return self.moves[-1].milliseconds if self.moves else 0.0

    def record(self) -> dict[str, Any]:
        """The fields as JSON types; the entries of ``settings`` are on the top level."""
        values = asdict(self)
        return {**values.pop("settings"), **values}


@dataclass(frozen=True)
class Replay:
    """Sequences of one or more networks for one prompt.

    Attributes:
        prompt: prefix or infill text; None for unconditional samples.
        lanes: one or more.
        machine: name of the machine on which the times were measured.
    """

    prompt: str | None
    lanes: tuple[Lane, ...]
    machine: str

    def record(self) -> dict[str, Any]:
        """The fields as JSON types."""
        lanes = [lane.record() for lane in self.lanes]
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

    One move is made as a warm-up before the recorded sampling starts. The measured times leave out ``on_move`` and the
    work of recording.

    Args:
        bundle: the bundle with the network.
        nfe: moves of the time grid; ``bundle.default_nfe`` by default.
        seed: the sample is the first one of ``generate`` with this seed.
        prefix: text that the sequence begins with.
        infill: text in which each [MASK] is filled in.
        length: positions without begin and end symbols; the largest possible by default.
        options: sampler, role, precision and other settings.
        on_move: called after every move.
        loaded: the bundle as it was loaded, if ``bundle`` is a copy in another number format; its record is stored.

    Raises:
        UsageError: a setting is invalid, or the prompt does not fit.
        DidiError: logits are not finite, or memory runs out.
    """
    chosen, network = options or SamplingOptions(), bundle.network(None if options is None else options.role)
    (length,) = checked_lengths(network, length)

    def moves() -> Iterator[Move]:
        return stream(bundle, nfe=nfe, seed=seed, prefix=prefix, infill=infill, length=length, options=chosen)

    next(moves())  # warm-up
    canvas = PromptSet.of(None, 1, seed, prefix, infill, (length,)).canvas(bundle, Frame.of(network))
    is_given = [not free for free in canvas.is_free[0].tolist()]
    start = shown_tokens(bundle, canvas.tokens[0].tolist(), is_given)
    # Uniform-state diffusion has a token at every position before the first move.
    is_known = is_given if bundle.process.mask_id is not None else [True] * canvas.length
    recorded, before, ids = [], start, canvas.tokens[0].tolist()
    for move, ids, milliseconds in _timed(moves()):
        is_known = [old or new for old, new in zip(is_known, move.is_changed[0].tolist(), strict=True)]
        after = shown_tokens(bundle, ids, is_known)
        changed = tuple(position for position in range(canvas.length) if after[position] != before[position])
        passes, discriminator_passes = int(move.network_passes[0]), int(move.discriminator_passes[0])
        texts = tuple(after[position] for position in changed)
        recorded.append(ReplayMove(milliseconds, move.t, passes, discriminator_passes, changed, texts))
        before = after
        if on_move is not None:
            on_move(move)
    settings = sampling_record(loaded or bundle, chosen, nfe=num_moves(bundle, nfe, length, chosen), length=length)
    (text,) = decode(bundle, torch.tensor([ids]))
    return Lane(settings, seed, tuple(start), tuple(recorded), text)


def _timed(moves: Iterator[Move]) -> Iterator[tuple[Move, list[int], float]]:
    """Moves of one sequence, its token ids, and the milliseconds spent on moves so far."""
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
    """Text of each position; None for [MASK] and for positions that are not known yet."""
    text = cache(lambda token: token_text(bundle, token))
    return [
        text(token) if known and token != bundle.process.mask_id else None
        for token, known in zip(ids, is_known, strict=True)
    ]


def token_text(bundle: Bundle, token: int) -> str:
    """The text that a token appends to other tokens, with the space that the tokenizer writes between words."""
    (once,), (twice,) = (decode(bundle, torch.tensor([[token] * times])) for times in (1, 2))
    return twice[len(once) :]
