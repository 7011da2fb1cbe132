"""Runs the application as a process: signals, socket and logs."""

import errno
import math
import os
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


def check_address(host: str, port: int) -> None:
    """Check that the address can be listened on, before anything is printed or logged.

    Raises:
        DidiError: the address is not available.
    """
    errors: list[OSError] = []
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in places:
            try:
                _bind(family, kind, protocol, address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise
                errors.append(error)  # such as a family that the machine does not have
        if len(errors) == len(places):
            raise errors[0]
    except OSError as error:
        raise _refusal(error, host, port) from error


def _bind(family: int, kind: int, protocol: int, address: Any) -> None:
    """Bind a socket with the options of asyncio's servers, and close it."""
    with socket.socket(family, kind, protocol) as listener:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)


def _refusal(error: OSError, host: str, port: int) -> DidiError:
    """The error of an address that is not available."""
    advice = ", which is in use; choose another port, or stop the program that listens there"
    reason = advice if error.errno == errno.EADDRINUSE else f": {error.strerror or error}"
    return DidiError(f"cannot listen on {host}:{port}{reason}")


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
    for signal_number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again once it has stopped
        signal.signal(signal_number, lambda *_: None)
    try:
        server.run()
    except SystemExit as stop:  # raised by uvicorn; its context is the error of the socket, if there is one
        cause = stop.__context__
        if not isinstance(cause, OSError):
            raise DidiError(NOT_STARTED) from stop
        raise _refusal(cause, host, port) from stop
    if not server.started:  # uvicorn before 0.54 returns without an exception
        raise DidiError(NOT_STARTED)
