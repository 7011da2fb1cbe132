"""The thread that samples: a bounded queue in front of a scheduler."""

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
NUM_END_TIMES = 32
"""Number of the latest ends of jobs from which ``Retry-After`` is estimated."""


class Overloaded(DidiError):
    """The queue is full.

    Attributes:
        retry_after: seconds after which the queue may have room.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Stopping(DidiError):
    """The server is stopping: it takes no new jobs, or ended a job before it was finished."""


class Engine:
    """Runs jobs in a separate thread, from ``start`` to ``stop``.

    Args:
        scheduler: shares passes between jobs; only the thread calls it.
        max_queue: limit on waiting jobs.
    """

    def __init__(self, scheduler: Scheduler, max_queue: int) -> None:
        self.scheduler = scheduler
        self._max_queue = max_queue
        self._wake = threading.Condition()
        self._is_stopping = False
        self._deadline = math.inf  # value of time.monotonic at which all jobs end
        self._arrived: list[Job] = []
        self._end_times: deque[float] = deque(maxlen=NUM_END_TIMES)
        self._thread = threading.Thread(target=self._work, name="didi-engine", daemon=True)

    @property
    def is_running(self) -> bool:
        """Whether ``submit`` takes jobs."""
        return self._thread.is_alive() and not self._is_stopping

    @property
    def num_waiting(self) -> int:
        """Number of jobs that have not started."""
        return len(self._arrived) + len(self.scheduler.waiting)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all jobs of a request, or none if an error is raised.

        Raises:
            UsageError: there are more jobs than an empty queue can hold.
            Overloaded: the queue has no room for the jobs.
            Stopping: the thread is not running, or ``stop`` was called.
        """
        if len(jobs) > self._max_queue:
            raise UsageError(
                f"a request has at most {self._max_queue} prompts here; got {len(jobs)}: send fewer at once"
            )
        with self._wake:
            if not self.is_running:
                raise Stopping("the server is stopping; send the request to another server, or later")
            num_waiting = self.num_waiting
            if num_waiting + len(jobs) > self._max_queue:
                seconds = self._retry_after(num_waiting)
                raise Overloaded(f"{num_waiting} requests wait already; try again in {seconds} s", seconds)
            self._arrived.extend(jobs)
            self._wake.notify()

    def end_within(self, seconds: float) -> None:
        """End all jobs with ``Stopping`` after ``seconds``; until then the engine takes and runs jobs."""
        self._deadline = time.monotonic() + seconds

    def stop(self, timeout: float = 0.0) -> None:
        """Take no more jobs, and wait until the thread ends; after ``timeout`` seconds jobs end with ``Stopping``."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join(timeout)
        self._deadline = -math.inf
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._is_stopping or self._arrived or not self.scheduler.is_idle)
                self.scheduler.waiting.extend(self._arrived)
                self._arrived.clear()
                if self.scheduler.is_idle:
                    return
            if time.monotonic() >= self._deadline:
                stopping = Stopping("the server stopped before the request was finished; send it to another server")
                for job in [*self.scheduler.waiting, *self.scheduler.running]:
                    job.end(stopping)
            try:
                self._end_times.extend([time.monotonic()] * self.scheduler.step())
            except Exception as error:  # the error of a single job ends that job in the scheduler and does not get here
                LOG.exception("a round failed")
                for job in self.scheduler.running:
                    job.end(error)

    def _retry_after(self, num_waiting: int) -> int:
        """Estimated seconds until half of the waiting jobs have ended, in [1, 60]; 1 before two jobs have ended."""
        if len(self._end_times) < 2:
            return 1
        rate = len(self._end_times) / max(time.monotonic() - self._end_times[0], 1e-3)
        return min(60, max(1, math.ceil(num_waiting / 2 / rate)))
