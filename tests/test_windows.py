"""Windows lacks some modules and functions of POSIX: the package imports without them and reports what it cannot do."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from didi.apps import doctor
from didi.errors import UsageError
from didi.evaluation import speed_memory
from didi.files import write_atomically

# The first import loads the libraries; then every module of didi is imported again, without what Windows lacks.
IMPORT_ALL = """
import importlib, os, pkgutil, signal, sys
import didi
names = [m.name for m in pkgutil.walk_packages(didi.__path__, "didi.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "didi"]:
    del sys.modules[name]
for name in ("resource", "fcntl", "termios", "tty", "pty", "pwd", "grp", "syslog", "readline", "curses"):
    sys.modules[name] = None
for name in ("fork", "sysconf", "getuid", "geteuid", "setsid", "killpg", "getloadavg", "sched_getaffinity", "uname"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "pthread_sigmask", "alarm", "setitimer"):
    delattr(signal, name)
for name in names:
    importlib.import_module(name)
assert "didi.evaluation.speed_memory" in sys.modules
print(len(names))
"""


@pytest.mark.slow  # imports every library
def test_every_module_imports_without_what_windows_lacks(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(doctor.__file__).parents[2])}
    words = [sys.executable, "-c", IMPORT_ALL]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200


def test_a_written_file_is_flushed_through_a_descriptor_that_may_write(tmp_path, monkeypatch):
    modes = []
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr("os.fsync", lambda number: modes.append(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE))
    write_atomically(tmp_path / "a", "text")
    assert modes == [os.O_RDWR]


def test_the_doctor_asks_for_a_device_where_the_memory_is_unknown(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    with pytest.raises(UsageError, match="this system does not report its memory: give --device, one of h100"):
        doctor._device("this")


def test_peak_memory_is_refused_where_no_system_call_reports_it(monkeypatch):
    monkeypatch.setattr(speed_memory, "Path", lambda _: SimpleNamespace(exists=lambda: False))
    assert speed_memory._resident_mib("VmRSS") > 0
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(UsageError, match="does not report peak memory: measure time only"):
        speed_memory._resident_mib("VmRSS")
