"""``/v1/completions`` and ``/v1/models`` in OpenAI's form."""

import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request

from didi.serving.follow import Followed
from didi.serving.generate import ERRORS, EventStream
from didi.serving.growing import Growing
from didi.serving.problems import logged
from didi.serving.requests import Asked, completions
from didi.serving.schemas import Choice, Completion, CompletionRequest, ErrorAnswer, ErrorBody, ModelList, Usage
from didi.serving.state import Parts, unless_gone

LOG = logging.getLogger("didi.serving")
router = APIRouter()


@router.get("/v1/models", response_model=ModelList)
async def models(parts: Parts) -> ModelList:
    """The models that are served, each by its name and, with a role, by network."""
    return ModelList(data=[card for model in parts.models for card in model.cards()])


@router.post("/v1/completions", response_model=Completion, responses=ERRORS)
async def complete(body: CompletionRequest, request: Request, parts: Parts) -> Any:
    """Complete texts; with ``stream``, parts of them as soon as all tokens before are drawn."""
    asked = completions(body, parts.models, parts.settings)
    if parts.settings.logs_prompts:
        LOG.info("prompt", extra={"fields": {"prompt": body.prompt, "suffix": body.suffix}})
    follow = parts.follow(asked, sees_moves=bool(body.stream))
    answer = Answer(body, asked)
    if body.stream:
        return EventStream(follow, _stream(follow, answer), parts)
    with follow:
        tokens = await unless_gone(request, follow.finished())
    rows = [row for one in tokens for row in one.tolist()]
    choices = [
        Choice(text=one.finished(row), index=index, finish_reason=one.finish_reason)
        for index, (one, row) in enumerate(zip(answer.growing, rows, strict=True))
    ]
    return answer.part(choices, answer.usage)


class Answer:
    """The answer to a request, as a whole or in parts.

    Args:
        body: the request.
        asked: its prompts.

    Attributes:
        growing: the text of each choice; those of the first prompt come first.
        usage: tokens of the request.
    """

    def __init__(self, body: CompletionRequest, asked: Sequence[Asked]) -> None:
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._model = body.model or asked[0].model.name
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        self.growing = [
            Growing(one, [stop for stop in stops if stop], echoes=bool(body.echo))
            for one in asked
            for _ in range(len(one.plan.canvas))
        ]
        drawn = sum(int(one.plan.canvas.is_free.sum()) for one in asked)
        given = sum(one.length - int(one.plan.canvas.is_free[0].sum()) for one in asked)
        self.usage = Usage(prompt_tokens=given, completion_tokens=drawn, total_tokens=given + drawn)
        self.num = body.n
        self.sends_usage = body.stream_options is not None and body.stream_options.include_usage

    def part(self, choices: list[Choice], usage: Usage | None = None) -> Completion:
        """A part of the answer."""
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)


async def _stream(follow: Followed, answer: Answer) -> AsyncIterator[dict[str, str]]:
    """Parts of completions, for jobs that are submitted already."""

    def sent(index: int, text: str, reason: Any = None) -> dict[str, str]:
        choice = Choice(text=text, index=index, finish_reason=reason)
        return {"data": answer.part([choice]).model_dump_json()}

    try:
        for index, one in enumerate(answer.growing):
            if one.head:
                yield sent(index, one.head)
        async for number, moves in follow.events():
            for move in moves:
                index = number * answer.num + move.sequence
                if text := answer.growing[index].added(move.positions, move.token_ids):
                    yield sent(index, text)
    except Exception as error:  # the status is sent: what is left is a part with an error
        problem = logged(error)
        body = ErrorBody(message=problem.message, type=problem.type, code=problem.code)
        yield {"data": ErrorAnswer(error=body).model_dump_json()}
        return
    rows = [row for tokens in follow.sequences() for row in tokens.tolist()]
    for index, (one, row) in enumerate(zip(answer.growing, rows, strict=True)):
        yield sent(index, one.rest(row), one.finish_reason)
    if answer.sends_usage:
        yield {"data": answer.part([], answer.usage).model_dump_json()}
    yield {"data": "[DONE]"}
