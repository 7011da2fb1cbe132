"""HTTP status and body, in the format of OpenAI's API, for each kind of error."""

import logging
import reprlib
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
SCHEMAS: Mapping[str, type[BaseModel]] = {"/v1/generate": GenerateRequest, "/v1/completions": CompletionRequest}


class Problem(NamedTuple):
    """An error response.

    Attributes:
        status: HTTP status.
        type: kind of error, with OpenAI's names.
        message: one line.
        param: field of the request that the error concerns.
        code: constant by which programs recognise the cause.
        retry_after: seconds after which the client may try again.
        allow: methods of the route, if the request has another one.
    """

    status: int
    type: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None
    allow: str | None = None

    def response(self) -> JSONResponse:
        """The response."""
        error = ErrorBody(message=self.message, type=self.type, param=self.param, code=self.code)
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.allow is not None:
            headers["Allow"] = self.allow
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(ErrorAnswer(error=error).model_dump(), self.status, headers)


def problem_from(error: BaseException) -> Problem:
    """The problem for an exception; the message of an unexpected exception is not shown to the client."""
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
    return Problem(500, "server_error", "an unexpected error; the server's log has the details")


def logged_problem(error: BaseException) -> Problem:
    """``problem_from`` an exception; the traceback of an unexpected exception is logged."""
    if not isinstance(error, DidiError | HTTPException):
        LOG.error("an unexpected error", exc_info=error)
    return problem_from(error)


def validation_problem(error: RequestValidationError, path: str) -> Problem:
    """The problem for the first error in a body that does not match its schema.

    Args:
        error: the errors.
        path: path of the route.
    """
    first: Mapping[str, Any] = error.errors()[0]
    location = [str(part) for part in first["loc"] if part != "body"]
    field, schema = (location[0] if location else None), SCHEMAS.get(path)
    if first["type"] == "json_invalid":
        return Problem(400, "invalid_request_error", one_line(f"the body is not valid JSON: {first['ctx']['error']}"))
    if first["type"] == "extra_forbidden" and schema is not None:
        hint = suggestion(location[-1], schema.model_fields)
        return Problem(400, "invalid_request_error", one_line(f"there is no field {location[-1]!r}{hint}"), field)
    if not location:
        message = "the body is a JSON object, sent with the header Content-Type: application/json; send one"
        return Problem(400, "invalid_request_error", message)
    got = "" if first["type"] == "missing" else f"; got {reprlib.repr(first['input'])}"
    return Problem(400, "invalid_request_error", one_line(f"{'.'.join(location)}: {first['msg']}{got}"), field)


def route_problem(error: HTTPException, method: str, path: str) -> Problem:
    """The problem of a request to no route, or with a method that its route does not have."""
    allow = (error.headers or {}).get("Allow")
    fix = "/docs lists the routes" if allow is None else f"{path} has {allow}"
    message = one_line(f"there is no route {method} {path}; {fix}")
    return Problem(error.status_code, "invalid_request_error", message, allow=allow)


def one_line(text: str) -> str:
    """A message in one line of valid Unicode."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())
