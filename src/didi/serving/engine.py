"""The thread that samples: a bounded queue before a scheduler."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence

from didi.errors import DidiError, UsageError
from didi.serving.job import Job
from didi.serving.scheduler import Scheduler

LOG = logging.getLogger("didi.serving")
RECENT = 32
"""Ends of jobs from which the rate of a busy server is estimated."""


class Overloaded(DidiError):
    """The queue is full.

    Attributes:
        retry_after: seconds after which there may be room.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Stopping(DidiError):
    """The server takes no more requests."""


class Engine:
    """Runs jobs in a thread of its own, from ``start`` to ``stop``.

    Args:
        scheduler: shares passes; the thread alone calls it.
        max_queue: jobs that may wait.
    """

    def __init__(self, scheduler: Scheduler, max_queue: int) -> None:
        self.scheduler = scheduler
        self._max_queue = max_queue
        self._wake = threading.Condition()
        self._is_stopping = self._gives_up = False
        self._last_moment = math.inf
        self._arrived: list[Job] = []
        self._ends: deque[float] = deque(maxlen=RECENT)
        self._thread = threading.Thread(target=self._work, name="didi-engine", daemon=True)

    @property
    def is_running(self) -> bool:
        """Whether jobs are taken."""
        return self._thread.is_alive() and not self._is_stopping

    @property
    def num_waiting(self) -> int:
        """Jobs that have not started."""
        return len(self._arrived) + len(self.scheduler.waiting)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of a request, all or none.

        Raises:
            UsageError: there are more jobs than the queue can ever hold.
            Overloaded: the queue has no room for them.
            Stopping: the thread does not run, or not for long.
        """
        if len(jobs) > self._max_queue:
            raise UsageError(
                f"a request has at most {self._max_queue} prompts here; got {len(jobs)}: send fewer at once"
            )
        with self._wake:
            if not self.is_running:
                raise Stopping("the server is stopping; send the request to another, or later")
            waiting = self.num_waiting
            if waiting + len(jobs) > self._max_queue:
                seconds = self._retry_after(waiting)
                raise Overloaded(f"{waiting} requests wait already; try again in {seconds} s", seconds)
            self._arrived.extend(jobs)
            self._wake.notify()

    def end_within(self, seconds: float) -> None:
        """End the jobs that still run or wait after ``seconds`` with ``Stopping``; until then jobs are taken."""
        self._last_moment = time.monotonic() + seconds

    def stop(self, timeout: float = 0.0) -> None:
        """Take no more jobs, finish those there are for at most ``timeout`` seconds, and give up the rest."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join(timeout)
        self._gives_up = True
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._is_stopping or self._arrived or not self.scheduler.is_idle)
                self.scheduler.waiting.extend(self._arrived)
                self._arrived.clear()
                if self.scheduler.is_idle:
                    return
            if self._gives_up or time.monotonic() >= self._last_moment:
                self._end_all(Stopping("the server stopped before the request was finished; send it to another"))
            try:
                self._ends.extend([time.monotonic()] * self.scheduler.step())
            except Exception as error:  # no job is at fault: each takes its own exceptions
                LOG.exception("a round failed")
                for job in self.scheduler.running:
                    job.end(error)

    def _end_all(self, error: Exception) -> None:
        for job in [*self.scheduler.waiting, *self.scheduler.running]:
            job.end(error)

    def _retry_after(self, num_waiting: int) -> int:
        """Seconds until half of those that wait have ended, at the rate of late; 1 to 60."""
        if len(self._ends) < 2:
            return 1
        rate = len(self._ends) / max(time.monotonic() - self._ends[0], 1e-3)
        return min(60, max(1, math.ceil(num_waiting / 2 / rate)))
