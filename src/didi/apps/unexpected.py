"""Reports of unexpected exceptions: one line for the user, and the traceback in a file."""

import contextlib
import os
import platform
import shlex
import sys
import tempfile
import traceback


def unexpected(error: Exception) -> str:
    """Write the traceback of ``error`` into a new file in the system's folder for temporary files.

    Args:
        error: the exception, after it was raised.

    Returns:
        One line with the type and message of the exception, and the name of the file or why it could not be written.
    """
    message = " ".join(str(error).split())
    what = f"unexpected {type(error).__name__}" + (f": {message[:300]}" if message else "")
    try:
        handle, name = tempfile.mkstemp(prefix="didi-", suffix=".log")
        with contextlib.closing(os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace")) as file:
            file.write(f"{shlex.join(sys.argv)}\nPython {platform.python_version()}, {platform.platform()}\n\n")
            file.writelines(traceback.format_exception(error))
    except OSError as failure:
        return f"{what}; its traceback could not be written ({failure.strerror})"
    return f"{what}; the traceback is in {name}: please report it"
