"""The process of a server: signals, sockets and logs around the application."""

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


class Server(uvicorn.Server):
    """uvicorn's server for the application of ``app.make_app``: requests that run have ``drain`` seconds to finish.

    Those that do not are ended by the engine, so that a stream ends with an ``error`` event; uvicorn would cut it.

    Args:
        app: from ``app.make_app``.
        drain: seconds.
        options: others of ``uvicorn.Config``.
    """

    def __init__(self, app: FastAPI, drain: float, **options: Any) -> None:
        timeout = math.ceil(drain) + GRACE
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=timeout, **options)
        super().__init__(config)
        self._engine, self._drain = app.state.parts.engine, drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and end those that there are."""
        self._engine.end_within(self._drain)
        await super().shutdown(sockets)


def serve(app: FastAPI, settings: ServerSettings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; then requests that run are finished, and new ones are refused.

    Args:
        app: from ``app.make_app``.
        settings: those of the application.
        host: address to listen at.
        port: to listen at; 0 for a free one, which the log names.

    Raises:
        DidiError: the application cannot start, or the address cannot be listened at.
    """
    log_to_stderr()
    server = Server(app, settings.drain, host=host, port=port, server_header=False)
    for one in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again once it has stopped
        signal.signal(one, lambda *_: None)
    try:
        server.run()
    except SystemExit as stop:  # which uvicorn raises while it handles the error of the socket, if there is one
        cause = stop.__context__
        if not isinstance(cause, OSError):
            raise DidiError("the server cannot start; its log has the error") from stop
        advice = "; choose another port, or stop what listens there"
        reason = advice if cause.errno == errno.EADDRINUSE else f": {cause.strerror or cause}"
        raise DidiError(f"cannot listen at {host}:{port}{reason}") from stop
