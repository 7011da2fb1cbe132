"""A job of the engine's thread as seen from an event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any

from jaxtyping import Int
from torch import Tensor

from didi.errors import DidiError, NotFinite, UsageError
from didi.serving.engine import Engine
from didi.serving.job import Job, Moved
from didi.serving.metrics import Metrics
from didi.serving.requests import Asked
from didi.serving.schemas import MoveEvent

Moves = list[MoveEvent]
MAX_UNREAD = 2**17
"""Positions of moves that may wait for the reader of a stream, some 10 MB."""


class SlowReader(DidiError):
    """A client reads its stream too slowly for what it asked for."""


class Followed:
    """The jobs of a request. As a context manager it submits them to the engine on entry and cancels them on exit.

    Nothing has to be released before entry, so a response that is never started leaves no job.

    Args:
        engine: to which the jobs are submitted.
        metrics: count them.
        asked: what the jobs sample.
        timeout: seconds that they may take, waiting included.
        sees_moves: whether ``events`` has every move, rather than the ends alone.
    """

    def __init__(
        self, engine: Engine, metrics: Metrics, asked: Sequence[Asked], timeout: float, *, sees_moves: bool = False
    ) -> None:
        self._engine, self._metrics, self.asked = engine, metrics, asked
        # Each is written by one thread alone: the engine's, and that of the event loop.
        self._num_sent = self._num_read = 0
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Moves | Exception | None]] = asyncio.Queue()
        self.jobs = [self._job(number, one, timeout, sees_moves) for number, one in enumerate(asked)]

    def __enter__(self) -> "Followed":
        """Submit the jobs.

        Raises:
            Overloaded: the queue is full.
            Stopping: the server takes no more jobs.
        """
        self._engine.submit(self.jobs)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in self.jobs:
            job.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Moves]]:
        """The number of a job and what a move of it changed, as they come, until all have ended.

        Raises:
            Exception: what a job ended with instead of a sample.
        """
        left = len(self.jobs)
        while left:
            number, found = await self._events.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield number, found
                self._num_read += _size(found)

    async def finished(self) -> list[Int[Tensor, "b _l"]]:
        """The sequences of each job."""
        async for _ in self.events():
            pass
        return self.sequences()

    def sequences(self) -> list[Int[Tensor, "b _l"]]:
        """The sequences of each job, all of which have ended, without begin and end symbols."""
        return [
            one.without_frame(job.tokens)
            for one, job in zip(self.asked, self.jobs, strict=True)
            if job.tokens is not None
        ]

    def _job(self, number: int, asked: Asked, timeout: float, sees_moves: bool) -> Job:
        def ended(job: Job) -> None:
            try:
                error = fault(asked, job.error)
            except (
                Exception
            ) as failure:  # raised here, it would end the jobs of other requests and keep this client waiting
                error = failure
            self._send(self._metrics.job_ended, job)
            self._send(self._events.put_nowait, (number, error))

        def moved(move: Moved) -> None:
            if self._num_sent - self._num_read > MAX_UNREAD:
                raise SlowReader("the stream is read too slowly; read it faster, or ask for fewer moves or samples")
            found = move_events(asked, move)
            self._num_sent += _size(found)
            self._send(self._events.put_nowait, (number, found))

        job = Job(asked.plan, on_end=ended, on_move=moved if sees_moves else None)
        job.deadline = job.created + timeout
        return job

    def _send(self, function: Callable[..., Any], argument: Any) -> None:
        """Call a function in the event loop, unless it has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, argument)


def _size(moves: Moves) -> int:
    return sum(1 + len(one.positions) for one in moves)


def fault(asked: Asked, error: Exception | None) -> Exception | None:
    """The error of a job; logits that are not finite are the request's fault unless the weights have one."""
    if isinstance(error, NotFinite) and asked.model.check_weights():
        return UsageError(
            "with these settings the logits are not finite, while the weights are: use a smaller guidance_scale, or a "
            "temperature nearer to 1"
        )
    return error


def move_events(asked: Asked, moved: Moved) -> Moves:
    """What a move changed, sequence by sequence."""
    step, plan, texts = moved.step, asked.plan, asked.model.token_texts
    mask_id, changed, state = plan.bundle.process.mask_id, step.changed.cpu(), step.z.cpu()
    if mask_id is None and moved.number == 1:  # the first state, of random tokens, was not sent
        changed = plan.canvas.is_free.cpu()
    changed, state = asked.without_frame(changed), asked.without_frame(state)
    events = []
    for row, (where, z) in enumerate(zip(changed, state, strict=True)):
        positions = where.nonzero().squeeze(1).tolist()
        ids = z[where].tolist()
        events.append(
            MoveEvent(
                sequence=row,
                move=moved.number,
                t=step.t,
                passes=int(moved.network_passes[row]),
                discriminator_passes=int(moved.discriminator_passes[row]),
                milliseconds=round(moved.milliseconds, 3),
                positions=positions,
                token_ids=ids,
                texts=[None if one == mask_id else texts[one] for one in ids],
            )
        )
    return events
