"""Worker processes of a study: each item once, in processes of one thread, and how they stop.

Ctrl-C reaches every process of a terminal. Here the parent process alone receives it: it lets no further item begin and
sends SIGTERM once to each worker, on which a training run saves its state. A second Ctrl-C ends the workers at once.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing.synchronize import Event
from types import FrameType
from typing import TypeVar

from didi.apps.streams import outlive_log
from didi.errors import Interrupted

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_items(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_workers: int,
    on_result: Callable[[Result], None],
) -> None:
    """Call ``function`` with each item in worker processes.

    A failure of an item lets those that have begun end by themselves and the others not begin.

    Args:
        function: what is done; it, items and results are pickled.
        items: its arguments.
        num_workers: processes.
        on_result: called with each result as it comes.

    Raises:
        KeyboardInterrupt: Ctrl-C; the workers have ended.
    """
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    with ProcessPoolExecutor(num_workers, mp_context=spawn, initializer=_begin, initargs=(stop,)) as pool:
        try:
            with _held_interrupts():  # the pool starts its processes as items are submitted
                futures = [pool.submit(partial(_do, function), item) for item in items]
            for future in as_completed(futures):
                on_result(future.result())
        except BaseException as error:
            stop.set()
            try:
                if isinstance(error, KeyboardInterrupt):
                    _say("stopping: runs that have begun save their state; Ctrl-C again ends them at once")
                    for worker in multiprocessing.active_children():
                        worker.terminate()
                pool.shutdown(wait=True, cancel_futures=True)
            except KeyboardInterrupt:
                for worker in multiprocessing.active_children():
                    worker.kill()
                raise
            raise


@contextlib.contextmanager
def _held_interrupts() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block ends; they stay blocked in processes that are started within.

    Where the system has no signal masks (Windows), nothing waits.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------- in a worker --- #

_stop: Event | None = None
_is_busy = False


def _begin(stop: Event) -> None:
    """Prepare this worker."""
    global _stop
    _stop = stop
    end_with_parent()
    outlive_log()
    signal.signal(signal.SIGTERM, _on_sigterm)
    if hasattr(
        signal, "pthread_sigmask"
    ):  # it would have ended this worker, and broken the pool, before it had a handler
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    """Leave the item that is being done; a training run replaces this handler by its own."""
    if _is_busy:
        raise KeyboardInterrupt


def _do(function: Callable[[Item], Result], item: Item) -> Result:
    global _is_busy
    _is_busy = True
    try:
        if _stop is not None and _stop.is_set():  # the pool hands out items ahead of time
            raise Interrupted("the study was stopped before this item began")
        return function(item)
    finally:
        _is_busy = False


def end_with_parent() -> None:
    """Let this worker end when its parent does, however that ends: a killed study must not hold its runs' folders.

    Raises:
        RuntimeError: this process is no worker.
    """
    if (parent := multiprocessing.parent_process()) is None:
        raise RuntimeError("only a process that multiprocessing started has a parent to end with")

    def wait() -> None:
        parent.join()
        os._exit(1)  # a run is safe to kill at any time

    threading.Thread(target=wait, daemon=True).start()
