"""State that the routes of an application share, and the wait for a result or a disconnected client."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from didi.serving.engine import Engine
from didi.serving.job import Cancelled
from didi.serving.metrics import Metrics
from didi.serving.models import Models
from didi.serving.request_jobs import RequestJobs
from didi.serving.requests import JobSpec
from didi.serving.settings import ServerSettings

Result = TypeVar("Result")


@dataclass(frozen=True)
class ServerState:
    """Models, settings, engine and metrics of a server."""

    models: Models
    settings: ServerSettings
    engine: Engine
    metrics: Metrics

    def jobs(self, specs: Sequence[JobSpec], *, sees_moves: bool = False) -> RequestJobs:
        """The jobs of a request; entering the context submits them. See ``RequestJobs``."""
        return RequestJobs(self.engine, self.metrics, specs, self.settings.timeout, sees_moves=sees_moves)


def _server_state(connection: HTTPConnection) -> ServerState:
    state: ServerState = connection.app.state.server
    return state


InjectedState = Annotated[ServerState, Depends(_server_state)]
"""Parameter of a route that FastAPI fills with the state of the application."""


async def unless_disconnected(request: Request, work: Awaitable[Result]) -> Result:
    """The result of ``work``, which is cancelled when the client disconnects.

    Raises:
        Cancelled: the client disconnected first.
    """
    task, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client has disconnected")
        return task.result()
    finally:
        for future in (task, disconnect):
            future.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
