"""``/v1/generate``: sequences of a model, at once or move by move."""

import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from didi.sampling.prompt import decode
from didi.serving.follow import Followed
from didi.serving.problems import logged
from didi.serving.requests import Asked, generation
from didi.serving.schemas import (
    EndEvent,
    ErrorAnswer,
    ErrorEvent,
    GenerateRequest,
    GenerateResponse,
    Sequence,
    StartEvent,
)
from didi.serving.settings import GRACE
from didi.serving.state import Parts, State, unless_gone

LOG = logging.getLogger("didi.serving")
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 404, 413, 429, 500, 503, 504)
}
router = APIRouter()


@router.post("/v1/generate", response_model=GenerateResponse, responses=ERRORS)
async def generate(body: GenerateRequest, request: Request, parts: Parts) -> Any:
    """Draw sequences; with ``stream``, server-sent events ``start``, ``move``, ``end`` and ``error``."""
    asked = generation(body, parts.models, parts.settings)
    if parts.settings.logs_prompts:
        LOG.info("prompt", extra={"fields": {"prompt": body.prompt, "infill": body.infill}})
    follow = parts.follow([asked], sees_moves=body.stream)
    if body.stream:
        return EventStream(follow, _events(follow), parts)
    with follow:
        (tokens,) = await unless_gone(request, follow.finished())
    job = follow.jobs[0]
    return GenerateResponse(
        **_about(asked),
        sequences=[
            Sequence(text=text, token_ids=ids, network_passes=passes, discriminator_passes=judged)
            for text, ids, passes, judged in zip(
                decode(asked.model.bundle, tokens),
                tokens.tolist(),
                job.network_passes.tolist(),
                job.discriminator_passes.tolist(),
                strict=True,
            )
        ],
        queue_milliseconds=round(1000 * (job.started - job.created), 3),
        milliseconds=round(1000 * (job.ended - job.started), 3),
    )


class EventStream(EventSourceResponse):
    """Server-sent events of jobs, which are submitted when the response starts and cancelled when it ends.

    The events come from an async generator, which may be closed before its first step, so the generator itself cannot
    cancel the jobs. A client that reads nothing for ``ServerSettings.timeout`` seconds is disconnected.

    Args:
        follow: the jobs.
        events: the events as fields of ``sse_starlette.ServerSentEvent``.
        parts: with the time limits.
    """

    def __init__(self, follow: Followed, events: AsyncIterator[dict[str, str]], parts: State) -> None:
        super().__init__(
            events,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            send_timeout=parts.settings.timeout,
            shutdown_grace_period=parts.settings.drain + GRACE,
            sep="\n",
        )
        self._follow = follow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response.

        Raises:
            Overloaded: the queue is full; nothing was sent.
            Stopping: the server takes no more jobs; nothing was sent.
        """
        with self._follow:
            await super().__call__(scope, receive, send)


async def _events(follow: Followed) -> AsyncIterator[dict[str, str]]:
    """The events of a stream, for a job that is submitted already."""
    asked, job = follow.asked[0], follow.jobs[0]
    ids, texts = _first_ids(asked), asked.model.token_texts
    shown = [[None if one is None else texts[one] for one in row] for row in ids]
    yield _event("start", StartEvent(**_about(asked), tokens=shown, token_ids=ids))
    try:
        async for _, moves in follow.events():
            for move in moves:
                yield _event("move", move)
    except Exception as error:  # the status is sent: what is left is an event
        yield _event("error", ErrorEvent(message=logged(error).message))
        return
    (tokens,) = follow.sequences()
    for row, text in enumerate(decode(asked.model.bundle, tokens)):
        passes, elapsed = int(job.network_passes[row]), round(1000 * (job.ended - job.started), 3)
        yield _event("end", EndEvent(sequence=row, text=text, network_passes=passes, milliseconds=elapsed))


def _event(name: str, record: BaseModel) -> dict[str, str]:
    return {"event": name, "data": record.model_dump_json()}


def _about(asked: Asked) -> dict[str, Any]:
    """What ``start`` and the whole answer have in common."""
    return {
        "model": asked.model.name,
        "role": asked.role,
        "sampler": asked.sampler,
        "nfe": asked.plan.num_moves,
        "length": asked.length,
        "seed": asked.seed,
    }


def _first_ids(asked: Asked) -> list[list[int | None]]:
    """Tokens of the given positions of each sequence; null where one is to be drawn."""
    tokens, is_free = (
        asked.without_frame(one).tolist() for one in (asked.plan.canvas.tokens, asked.plan.canvas.is_free)
    )
    return [
        [None if free else one for one, free in zip(*pair, strict=True)] for pair in zip(tokens, is_free, strict=True)
    ]
