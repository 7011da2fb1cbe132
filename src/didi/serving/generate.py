"""``/v1/generate``: sequences of a model, in one response or as a stream of moves."""

import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from didi.sampling.prompt import decode
from didi.serving.problems import logged_problem
from didi.serving.request_jobs import RequestJobs
from didi.serving.requests import JobSpec, generation_spec
from didi.serving.schemas import (
    EndEvent,
    ErrorAnswer,
    ErrorEvent,
    GenerateRequest,
    GenerateResponse,
    Sequence,
    StartEvent,
)
from didi.serving.settings import GRACE, ServerSettings
from didi.serving.state import InjectedState, unless_disconnected

LOG = logging.getLogger("didi.serving")
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 404, 413, 429, 500, 503, 504)
}
router = APIRouter()


@router.post("/v1/generate", response_model=GenerateResponse, responses=ERRORS)
async def generate(body: GenerateRequest, request: Request, state: InjectedState) -> Any:
    """Sample sequences; with ``stream``, server-sent events ``start``, ``move``, ``end`` and ``error``."""
    spec = generation_spec(body, state.models, state.settings)
    if state.settings.logs_prompts:
        LOG.info("prompt", extra={"fields": {"prompt": body.prompt, "infill": body.infill}})
    jobs = state.jobs([spec], sees_moves=body.stream)
    if body.stream:
        return EventStream(jobs, _events(jobs), state.settings)
    with jobs:
        (tokens,) = await unless_disconnected(request, jobs.finished())
    job = jobs.jobs[0]
    return GenerateResponse(
        **_shared_fields(spec),
        sequences=[
            Sequence(text=text, token_ids=ids, network_passes=passes, discriminator_passes=discriminator_passes)
            for text, ids, passes, discriminator_passes in zip(
                decode(spec.model.bundle, tokens),
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
        jobs: the jobs of the request, not submitted yet.
        events: the events as fields of ``sse_starlette.ServerSentEvent``.
        settings: time limits.
    """

    def __init__(self, jobs: RequestJobs, events: AsyncIterator[dict[str, str]], settings: ServerSettings) -> None:
        super().__init__(
            events,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            send_timeout=settings.timeout,
            shutdown_grace_period=settings.drain + GRACE,
            sep="\n",
        )
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response.

        Raises:
            UsageError: there are more jobs than the queue can hold; nothing was sent.
            Overloaded: the queue is full; nothing was sent.
            Stopping: the server takes no more jobs; nothing was sent.
        """
        with self._jobs:
            try:
                await super().__call__(scope, receive, send)
            except SendTimeoutError:
                LOG.info("a client of a stream reads nothing; it is disconnected")


async def _events(jobs: RequestJobs) -> AsyncIterator[dict[str, str]]:
    """The events of a stream with one job, which is submitted before the first event."""
    spec, job = jobs.specs[0], jobs.jobs[0]
    ids, token_texts = _prompt_ids(spec), spec.model.token_texts
    texts = [[None if token is None else token_texts[token] for token in row] for row in ids]
    yield _event("start", StartEvent(**_shared_fields(spec), tokens=texts, token_ids=ids))
    try:
        async for _, moves in jobs.events():
            for move in moves:
                yield _event("move", move)
    except Exception as error:  # the status has been sent, so the error has to be an event
        yield _event("error", ErrorEvent(message=logged_problem(error).message))
        return
    (tokens,) = jobs.sequences()
    for row, text in enumerate(decode(spec.model.bundle, tokens)):
        passes, elapsed = int(job.network_passes[row]), round(1000 * (job.ended - job.started), 3)
        yield _event("end", EndEvent(sequence=row, text=text, network_passes=passes, milliseconds=elapsed))


def _event(name: str, record: BaseModel) -> dict[str, str]:
    return {"event": name, "data": record.model_dump_json()}


def _shared_fields(spec: JobSpec) -> dict[str, Any]:
    """Fields that the ``start`` event and ``GenerateResponse`` have in common."""
    return {
        "model": spec.model.name,
        "role": spec.role,
        "sampler": spec.sampler,
        "nfe": spec.plan.num_moves,
        "length": spec.length,
        "seed": spec.seed,
    }


def _prompt_ids(spec: JobSpec) -> list[list[int | None]]:
    """Token ids of each sequence before sampling; None at positions that will be sampled."""
    canvas = spec.plan.canvas
    tokens, is_free = (spec.without_frame(tensor).tolist() for tensor in (canvas.tokens, canvas.is_free))
    return [
        [None if free else token for token, free in zip(*pair, strict=True)]
        for pair in zip(tokens, is_free, strict=True)
    ]
