"""What goes wrong with a request, as an HTTP status and OpenAI's form of an error."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from didi.errors import DidiError, UsageError, suggestion
from didi.serving.engine import Overloaded, Stopping
from didi.serving.job import Cancelled, TimedOut
from didi.serving.models import UnknownModel
from didi.serving.schemas import CompletionRequest, ErrorAnswer, ErrorBody, GenerateRequest

LOG = logging.getLogger("didi.serving")
FIELDS: Mapping[str, type[BaseModel]] = {"/v1/generate": GenerateRequest, "/v1/completions": CompletionRequest}


class Problem(NamedTuple):
    """A status, an error's type, its message in one line, the field it is about, and a code."""

    status: int
    type: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None

    def answer(self) -> JSONResponse:
        """The response."""
        error = ErrorBody(message=self.message, type=self.type, param=self.param, code=self.code)
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(ErrorAnswer(error=error).model_dump(), self.status, headers)


def problem_of(error: BaseException) -> Problem:
    """The problem that an exception stands for; those that no part expects are not told to the client."""
    message = one_line(str(error))
    match error:
        case Overloaded():
            return Problem(429, "rate_limit_error", message, code="overloaded", retry_after=error.retry_after)
        case Stopping():
            return Problem(503, "server_error", message, code="stopping", retry_after=1)
        case TimedOut():
            return Problem(504, "server_error", message, code="timeout")
        case Cancelled():
            return Problem(499, "server_error", message, code="cancelled")
        case UnknownModel():
            return Problem(404, "invalid_request_error", message, "model", "model_not_found")
        case UsageError():
            return Problem(400, "invalid_request_error", message)
        case DidiError():
            return Problem(500, "server_error", message)
        case HTTPException():
            return Problem(error.status_code, "invalid_request_error", one_line(str(error.detail)))
    return Problem(500, "server_error", "an unexpected error; the log of the server has it")


def logged(error: BaseException) -> Problem:
    """``problem_of`` an exception, whose traceback goes to the log where the client is not told what it is."""
    if not isinstance(error, DidiError | HTTPException):
        LOG.error("an unexpected error", exc_info=error)
    return problem_of(error)


def invalid(error: RequestValidationError, path: str) -> Problem:
    """The first fault of a body that does not fit its schema."""
    first: Mapping[str, Any] = error.errors()[0]
    where = [str(one) for one in first["loc"] if one != "body"]
    field, known = (where[0] if where else None), FIELDS.get(path)
    if first["type"] == "json_invalid":
        return Problem(400, "invalid_request_error", one_line(f"the body is JSON; it is not: {first['ctx']['error']}"))
    if first["type"] == "extra_forbidden" and known is not None:
        hint = suggestion(where[-1], known.model_fields)
        return Problem(400, "invalid_request_error", one_line(f"there is no field {where[-1]!r}{hint}"), field)
    about = f"{'.'.join(where)}: " if where else ""
    return Problem(400, "invalid_request_error", one_line(f"{about}{first['msg']}"), field)


def one_line(text: str) -> str:
    """A message in one line that every encoding can hold."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())
