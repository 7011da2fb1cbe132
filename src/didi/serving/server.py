"""The process of a server: signals, sockets and logs around the application."""

import signal

import uvicorn
from fastapi import FastAPI

from didi.errors import DidiError
from didi.serving.log import log_to_stderr
from didi.serving.settings import ServerSettings


def serve(app: FastAPI, settings: ServerSettings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; then requests that run are finished, and new ones are refused.

    Args:
        app: from ``app.make_app``.
        settings: those of the application.
        host: address to listen at.
        port: to listen at; 0 for a free one, which the log names.

    Raises:
        DidiError: the address cannot be listened at.
    """
    log_to_stderr()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.drain)),
        server_header=False,
    )
    server = uvicorn.Server(config)
    for one in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again once it has stopped
        signal.signal(one, lambda *_: None)
    try:
        server.run()
    except SystemExit as stop:
        raise DidiError(f"cannot listen at {host}:{port}; choose another port, or stop what listens there") from stop
