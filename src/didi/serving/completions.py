"""``/v1/completions`` and ``/v1/models`` in the format of OpenAI's API."""

import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request

from didi.serving.completion_text import CompletionText
from didi.serving.generate import ERRORS, EventStream
from didi.serving.problems import logged_problem
from didi.serving.request_jobs import RequestJobs
from didi.serving.requests import JobSpec, completion_specs
from didi.serving.schemas import Choice, Completion, CompletionRequest, ErrorAnswer, ErrorBody, ModelList, Usage
from didi.serving.state import InjectedState, unless_disconnected

LOG = logging.getLogger("didi.serving")
router = APIRouter()


@router.get("/v1/models", response_model=ModelList)
async def models(state: InjectedState) -> ModelList:
    """The served models: each under its name, and each of its networks as ``name:role``."""
    return ModelList(data=[card for model in state.models for card in model.cards()])


@router.post("/v1/completions", response_model=Completion, responses=ERRORS)
async def complete(body: CompletionRequest, request: Request, state: InjectedState) -> Any:
    """Complete texts; with ``stream``, a part of a text is sent as soon as it and all tokens before it are drawn."""
    specs = completion_specs(body, state.models, state.settings)
    if state.settings.logs_prompts:
        LOG.info("prompt", extra={"fields": {"prompt": body.prompt, "suffix": body.suffix}})
    jobs = state.jobs(specs, sees_moves=bool(body.stream))
    builder = CompletionBuilder(body, specs)
    if body.stream:
        return EventStream(jobs, _stream(jobs, builder), state.settings)
    with jobs:
        tokens = await unless_disconnected(request, jobs.finished())
    rows = [row for sequences in tokens for row in sequences.tolist()]
    choices = [
        Choice(text=text.finished(row), index=index, finish_reason=text.finish_reason)
        for index, (text, row) in enumerate(zip(builder.texts, rows, strict=True))
    ]
    return builder.completion(choices, builder.usage)


class CompletionBuilder:
    """Builds the response to a request, or the chunks of a streamed response.

    Args:
        body: the request.
        specs: one for each prompt of the request.

    Attributes:
        texts: the text of each choice; the ``num`` choices of the first prompt come first.
        usage: numbers of tokens of the request.
        num: choices per prompt.
        sends_usage: whether the last chunk of a stream has ``usage``.
    """

    def __init__(self, body: CompletionRequest, specs: Sequence[JobSpec]) -> None:
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._model = body.model or specs[0].model.name
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        self.texts = [
            CompletionText(spec, [stop for stop in stops if stop], echoes=bool(body.echo))
            for spec in specs
            for _ in range(len(spec.plan.canvas))
        ]
        num_drawn = sum(int(spec.plan.canvas.is_free.sum()) for spec in specs)
        num_prompt = sum(spec.length - int(spec.plan.canvas.is_free[0].sum()) for spec in specs)
        self.usage = Usage(prompt_tokens=num_prompt, completion_tokens=num_drawn, total_tokens=num_prompt + num_drawn)
        self.num = body.n
        self.sends_usage = body.stream_options is not None and body.stream_options.include_usage

    def completion(self, choices: list[Choice], usage: Usage | None = None) -> Completion:
        """The response, or a chunk of it."""
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)


async def _stream(jobs: RequestJobs, builder: CompletionBuilder) -> AsyncIterator[dict[str, str]]:
    """The chunks of a streamed response, for jobs that are submitted before the first chunk."""

    def chunk(index: int, text: str, reason: Any = None) -> dict[str, str]:
        choice = Choice(text=text, index=index, finish_reason=reason)
        return {"data": builder.completion([choice]).model_dump_json()}

    try:
        for index, text in enumerate(builder.texts):
            if text.head:
                yield chunk(index, text.head)
        async for number, moves in jobs.events():
            for move in moves:
                index = number * builder.num + move.sequence
                if new := builder.texts[index].added(move.positions, move.token_ids):
                    yield chunk(index, new)
    except Exception as error:  # the status has been sent, so the error has to be a chunk
        problem = logged_problem(error)
        body = ErrorBody(message=problem.message, type=problem.type, code=problem.code)
        yield {"data": ErrorAnswer(error=body).model_dump_json()}
        return
    rows = [row for tokens in jobs.sequences() for row in tokens.tolist()]
    for index, (text, row) in enumerate(zip(builder.texts, rows, strict=True)):
        yield chunk(index, text.rest(row), text.finish_reason)
    if builder.sends_usage:
        yield {"data": builder.completion([], builder.usage).model_dump_json()}
    yield {"data": "[DONE]"}
