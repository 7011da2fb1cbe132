"""Worker processes of a study and their reaction to Ctrl-C. The scripts do not import torch, to start fast."""

import os
import signal
import subprocess
import sys
import time

import pytest

from didi.apps.reproduce.workers import _held_interrupts

SCRIPT = """
import signal, sys, time
from pathlib import Path
from didi.apps.reproduce.workers import run_items
from didi.apps.terminal import run

folder = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background of a shell

{work}

if __name__ == "__main__":
    run(lambda: run_items(work, range(8), 2, lambda result: print("done", result, flush=True)))
"""
SLEEPS = """
def work(number):
    (folder / f"begun-{number}").touch()
    time.sleep(60)
"""
# Like a training loop: after the first signal, it continues until its state is saved.
SAVES = """
def work(number):
    received = []
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, frame: received.append(number))
    (folder / f"begun-{number}").touch()
    while not received:
        time.sleep(0.05)
    time.sleep(0.5)
    (folder / f"saved-{number}-{received}").touch()
    from didi.errors import Interrupted
    raise Interrupted("saved")
"""
NEVER_ENDS = """
def work(number):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"begun-{number}").touch()
    time.sleep(60)
"""
SLOW_START = """
if __name__ != "__main__":
    import os
    (folder / f"begun-{os.getpid()}").touch()
    time.sleep(1)

def work(number):
    (folder / f"worked-{number}").touch()
"""
FAILS = """
def work(number):
    (folder / f"begun-{number}").touch()
    time.sleep(0.3)
    if number == 0:
        from didi.errors import DidiError
        raise DidiError("item 0 failed")
    (folder / f"ended-{number}").touch()
    time.sleep(0.3)
    return number
"""


@pytest.fixture
def study(tmp_path):
    """Start a script in a separate process group, as a terminal does."""
    started = []

    def start(work):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(work=work))
        (tmp_path / "work").mkdir()
        started.append(
            subprocess.Popen(
                [sys.executable, str(script), str(tmp_path / "work")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        )
        return started[0], tmp_path / "work"

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(condition):
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("the condition does not hold after 20 seconds")


def names(folder, prefix="begun"):
    return sorted(path.name for path in folder.glob(f"{prefix}*"))


@pytest.mark.slow
@pytest.mark.parametrize("work", [SLEEPS, SLOW_START], ids=["working", "starting"])
def test_ctrl_c_stops_the_workers_and_no_further_item_begins(study, work):
    process, folder = study(work)
    wait_until(lambda: len(names(folder)) == 2)
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - begin < 10
    assert (process.returncode, out) == (130, "")
    assert err.splitlines() == [
        "stopping: runs that have begun save their state; Ctrl-C again ends them at once",
        "didi: interrupted",
    ]
    assert len(names(folder)) == 2
    assert not names(folder, "worked")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_worker_that_starts_does_not_end_at_a_signal(study, number):
    process, folder = study(SLOW_START)
    wait_until(lambda: len(names(folder)) == 2)
    for name in names(folder):
        os.kill(int(name.removeprefix("begun-")), number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert out.count("done") == len(names(folder, "worked")) == 8


def test_interrupts_are_not_held_where_the_system_has_no_signal_masks(monkeypatch):
    monkeypatch.delattr(signal, "pthread_sigmask")
    with _held_interrupts():
        pass


@pytest.mark.slow
def test_a_run_that_has_begun_gets_one_signal_and_saves(study):
    process, folder = study(SAVES)
    wait_until(lambda: len(names(folder)) == 2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert len(err.splitlines()) == 2
    assert names(folder, "saved") == [f"saved-{number}-[15]" for number in (0, 1)]
    assert len(names(folder)) == 2


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_workers_at_once(study):
    process, folder = study(NEVER_ENDS)
    wait_until(lambda: len(names(folder)) == 2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr.readline().startswith("stopping")
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    # On a busy machine Python's resource tracker may warn about a semaphore of a killed worker.
    lines = [text for text in err.splitlines() if "resource_tracker" not in text and "warnings.warn" not in text]
    assert (process.returncode, lines) == (130, ["didi: interrupted"])


@pytest.mark.slow
def test_after_a_failure_begun_items_end_and_no_further_item_begins(study):
    process, folder = study(FAILS)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (1, "didi: item 0 failed\n")
    begun, ended = names(folder), names(folder, "ended")
    assert len(ended) == len(begun) - 1
    assert len(begun) <= 4


@pytest.mark.slow
def test_workers_end_with_a_study_that_is_killed(study):
    work = SLEEPS.replace("touch()", "write_text(str(__import__('os').getpid()))")
    process, folder = study(work)
    wait_until(lambda: all(path.read_text() for path in folder.iterdir()) and len(names(folder)) == 2)
    workers = [int(path.read_text()) for path in folder.iterdir()]
    process.kill()
    wait_until(lambda: not any(is_alive(worker) for worker in workers))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
