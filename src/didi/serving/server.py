"""Runs the application as a process: signals, socket and logs."""

import errno
import math
import signal
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from didi.errors import DidiError
from didi.serving.log import log_to_stderr
from didi.serving.settings import GRACE, ServerSettings

NOT_STARTED = "the server cannot start; its log has the error"


class Server(uvicorn.Server):
    """uvicorn's server; after a signal to stop, running requests have ``drain`` seconds to finish.

    Then the engine ends their jobs, so that streams end with an ``error`` event. uvicorn would close the connections.

    Args:
        app: application of ``app.make_app``.
        drain: seconds.
        options: other arguments of ``uvicorn.Config``.
    """

    def __init__(self, app: FastAPI, drain: float, **options: Any) -> None:
        timeout = math.ceil(drain) + GRACE
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=timeout, **options)
        super().__init__(config)
        self._engine, self._drain = app.state.server.engine, drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, and end the open ones."""
        self._engine.end_within(self._drain)
        await super().shutdown(sockets)


def serve(app: FastAPI, settings: ServerSettings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; then finish running requests and refuse new ones.

    Args:
        app: application of ``app.make_app``.
        settings: settings of the application.
        host: address to listen on.
        port: port to listen on; 0 for a free port, which is logged.

    Raises:
        DidiError: the application cannot start, or the address is not available.
    """
    log_to_stderr()
    server = Server(app, settings.drain, host=host, port=port, server_header=False)
    for one in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again once it has stopped
        signal.signal(one, lambda *_: None)
    try:
        server.run()
    except SystemExit as stop:  # raised by uvicorn; its context is the error of the socket, if there is one
        cause = stop.__context__
        if not isinstance(cause, OSError):
            raise DidiError(NOT_STARTED) from stop
        advice = ", which is in use; choose another port, or stop the program that listens there"
        reason = advice if cause.errno == errno.EADDRINUSE else f": {cause.strerror or cause}"
        raise DidiError(f"cannot listen on {host}:{port}{reason}") from stop
    if not server.started:  # uvicorn before 0.54 returns without an exception
        raise DidiError(NOT_STARTED)
