"""Worker processes of a study, of one thread each, and their reaction to Ctrl-C.

Ctrl-C is sent to every process of a terminal. The workers block it, and the parent process handles it: no further item
begins, and SIGTERM is sent once to each worker, on which a training run saves its state. A second Ctrl-C kills the
workers.
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

    If an item fails, running items finish, and no further item begins.

    Args:
        function: the function; it, the items and the results are pickled.
        items: arguments of the function.
        num_workers: number of processes.
        on_result: called with each result as soon as it is available.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the workers have ended.
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
                    line = "stopping: runs that have begun save their state; Ctrl-C again ends them at once"
                    print(line, file=sys.stderr, flush=True)
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
    """Block SIGINT and SIGTERM within the context; they stay blocked in processes that are started within it.

    Without signal masks (Windows), the context has no effect.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------------------------------------------- in a worker --- #

_stop: Event | None = None
_is_busy = False


def _begin(stop: Event) -> None:
    """Initialise a worker process."""
    global _stop
    _stop = stop
    end_with_parent()
    outlive_log()
    signal.signal(signal.SIGTERM, _on_sigterm)
    if hasattr(signal, "pthread_sigmask"):  # unblocked only now: without a handler SIGTERM breaks the pool
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    """Interrupt the current item; a training run replaces this handler by its own."""
    if _is_busy:
        raise KeyboardInterrupt


def _do(function: Callable[[Item], Result], item: Item) -> Result:
    global _is_busy
    _is_busy = True
    try:
        if _stop is not None and _stop.is_set():  # the pool queues items for workers in advance
            raise Interrupted("the study was stopped before this item began")
        return function(item)
    finally:
        _is_busy = False


def end_with_parent() -> None:
    """End this worker when its parent ends, also if that is killed: otherwise the folders of its runs stay locked.

    Raises:
        RuntimeError: this process was not started by multiprocessing.
    """
    if (parent := multiprocessing.parent_process()) is None:
        raise RuntimeError("only a process that multiprocessing started has a parent to end with")

    def wait() -> None:
        parent.join()
        os._exit(1)  # a run is safe to kill at any time

    threading.Thread(target=wait, daemon=True).start()
