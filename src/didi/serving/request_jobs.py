"""The jobs of one request, as an event loop sees them; the engine's thread runs them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any

from jaxtyping import Int
from torch import Tensor

from didi.errors import DidiError, NotFinite, UsageError
from didi.serving.engine import Engine
from didi.serving.job import Job, JobMove
from didi.serving.metrics import Metrics
from didi.serving.requests import JobSpec
from didi.serving.schemas import MoveEvent

Moves = list[MoveEvent]
MAX_UNREAD = 2**17
"""Limit on the changed positions of moves that the client has not read yet; they take some 10 MB."""


class SlowReader(DidiError):
    """A client reads its stream more slowly than the moves are made."""


class RequestJobs:
    """The jobs of a request. As a context manager it submits them to the engine on entry and cancels them on exit.

    Nothing has to be released before entry, so a response that is never started leaves no job.

    Args:
        engine: runs the jobs.
        metrics: counts the jobs.
        specs: what the jobs sample, one job each.
        timeout: seconds that a job may take, waiting included.
        sees_moves: whether ``events`` yields the moves; without it, ``events`` only waits for the ends.

    Attributes:
        specs: as given.
        jobs: in the order of ``specs``.
    """

    def __init__(
        self, engine: Engine, metrics: Metrics, specs: Sequence[JobSpec], timeout: float, *, sees_moves: bool = False
    ) -> None:
        self._engine, self._metrics, self.specs = engine, metrics, specs
        # The engine's thread alone writes _num_sent, and the event loop alone writes _num_read: no lock is needed.
        self._num_sent = self._num_read = 0
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Moves | Exception | None]] = asyncio.Queue()
        self.jobs = [self._job(number, spec, timeout, sees_moves) for number, spec in enumerate(specs)]

    def __enter__(self) -> "RequestJobs":
        """Submit the jobs.

        Raises:
            UsageError: there are more jobs than the queue can hold.
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
        """Wait until all jobs have ended; yield the index of a job and the events of one of its moves, as they come.

        Raises:
            Exception: the error of the first job that ends without a sample.
        """
        num_running = len(self.jobs)
        while num_running:
            index, event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                num_running -= 1
            else:
                yield index, event
                self._num_read += _size(event)

    async def finished(self) -> list[Int[Tensor, "b _l"]]:
        """Wait until all jobs have ended; their ``sequences``.

        Raises:
            Exception: the error of the first job that ends without a sample.
        """
        async for _ in self.events():
            pass
        return self.sequences()

    def sequences(self) -> list[Int[Tensor, "b _l"]]:
        """The sequences of each job, without begin and end symbols; all jobs have ended."""
        return [
            spec.without_frame(job.tokens)
            for spec, job in zip(self.specs, self.jobs, strict=True)
            if job.tokens is not None
        ]

    def _job(self, index: int, spec: JobSpec, timeout: float, sees_moves: bool) -> Job:
        def on_end(job: Job) -> None:
            try:
                error = job_error(spec, job.error)
            except Exception as failure:  # if it left this function, the client would wait and other jobs would end
                error = failure
            self._call_in_loop(self._metrics.job_ended, job)
            self._call_in_loop(self._events.put_nowait, (index, error))

        def on_move(move: JobMove) -> None:
            if self._num_sent - self._num_read > MAX_UNREAD:
                raise SlowReader("the stream is read too slowly; read it faster, or ask for fewer moves or samples")
            events = move_events(spec, move)
            self._num_sent += _size(events)
            self._call_in_loop(self._events.put_nowait, (index, events))

        job = Job(spec.plan, on_end=on_end, on_move=on_move if sees_moves else None)
        job.deadline = job.created + timeout
        return job

    def _call_in_loop(self, function: Callable[..., Any], argument: Any) -> None:
        """Call a function in the event loop; do nothing if the loop is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, argument)


def _size(moves: Moves) -> int:
    return sum(1 + len(move.positions) for move in moves)


def job_error(spec: JobSpec, error: Exception | None) -> Exception | None:
    """The error that a job reports: for logits that are not finite, a ``UsageError`` if the weights are finite."""
    if isinstance(error, NotFinite) and spec.model.check_weights():
        return UsageError(
            "with these settings the logits are not finite, while the weights are: use a smaller guidance_scale, or a "
            "temperature nearer to 1"
        )
    return error


def move_events(spec: JobSpec, move: JobMove) -> Moves:
    """One event for each sequence of a job: the positions that the move changed, and their tokens."""
    step, plan, texts = move.step, spec.plan, spec.model.token_texts
    mask_id, changed, state = plan.bundle.process.mask_id, step.is_changed.cpu(), step.z.cpu()
    if mask_id is None and move.number == 1:
        # Uniform-state diffusion starts from random tokens, which no event has shown.
        changed = plan.canvas.is_free.cpu()
    changed, state = spec.without_frame(changed), spec.without_frame(state)
    events = []
    for row, (is_changed, z) in enumerate(zip(changed, state, strict=True)):
        positions = is_changed.nonzero().squeeze(1).tolist()
        ids = z[is_changed].tolist()
        events.append(
            MoveEvent(
                sequence=row,
                move=move.number,
                t=step.t,
                passes=int(move.network_passes[row]),
                discriminator_passes=int(move.discriminator_passes[row]),
                milliseconds=round(move.milliseconds, 3),
                positions=positions,
                token_ids=ids,
                texts=[None if token == mask_id else texts[token] for token in ids],
            )
        )
    return events
