"""What the routes of an application share."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from didi.serving.engine import Engine
from didi.serving.follow import Followed
from didi.serving.job import Cancelled
from didi.serving.metrics import Metrics
from didi.serving.models import Models
from didi.serving.requests import Asked
from didi.serving.settings import ServerSettings

Result = TypeVar("Result")


@dataclass(frozen=True)
class State:
    """The parts of a server."""

    models: Models
    settings: ServerSettings
    engine: Engine
    metrics: Metrics

    def follow(self, asked: Sequence[Asked], *, sees_moves: bool = False) -> Followed:
        """The jobs of a request, submitted; see ``Followed``."""
        return Followed(self.engine, self.metrics, asked, self.settings.timeout, sees_moves=sees_moves)


def _state(connection: HTTPConnection) -> State:
    state: State = connection.app.state.parts
    return state


Parts = Annotated[State, Depends(_state)]


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of ``work``, which is cancelled when the client leaves.

    Raises:
        Cancelled: the client has left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client has gone")
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
