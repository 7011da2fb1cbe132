"""Middleware of all routes: the bearer token, limits on bodies, the log and the metrics of requests."""

import asyncio
import hmac
import logging
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from didi.serving.job import Cancelled
from didi.serving.metrics import Metrics
from didi.serving.problems import Problem, problem_from
from didi.serving.settings import ServerSettings

LOG = logging.getLogger("didi.serving")
GUARDED = ("/v1/", "/metrics")


class Guard:
    """Refuses requests without the token, and bodies that are too large or arrive too slowly.

    Args:
        app: the next application.
        settings: token and limits.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive the body and pass the request on, or send an error response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (problem := self._token_problem(scope)) is not None:
            await problem.response()(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._settings.timeout):
                body = await self._body(receive)
        except TimeoutError:
            message = f"a body arrives within {self._settings.timeout:g} s here; send it faster"
            problem = Problem(408, "invalid_request_error", message)
            await problem.response()(scope, receive, send)
            return
        if body is None:
            limit = self._settings.max_body_bytes
            problem = Problem(
                413, "invalid_request_error", f"a body has at most {limit} bytes here; send a smaller one"
            )
            await problem.response()(scope, receive, send)
            return
        if body["type"] == "http.disconnect":  # nothing is sent; the log and the metrics have the status
            await problem_from(Cancelled("the client has disconnected")).response()(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)

    def _token_problem(self, scope: Scope) -> Problem | None:
        """The problem with the token of a request; None if the token is accepted or not needed."""
        if self._settings.token is None or not scope["path"].startswith(GUARDED):
            return None
        header: bytes | None = dict(scope["headers"]).get(b"authorization")
        if header is None:
            return _unauthorized("missing_token", "the request has no Authorization header; send Bearer TOKEN in it")
        scheme, _, token = header.partition(b" ")
        if scheme.lower() != b"bearer" or not token:  # schemes are case-insensitive (RFC 9110, section 11.1)
            return _unauthorized("malformed_authorization", "the Authorization header is not of the form Bearer TOKEN")
        if not hmac.compare_digest(token, self._settings.token.encode()):
            return _unauthorized("wrong_token", "the bearer token is wrong; send the token that the server has")
        return None

    async def _body(self, receive: Receive) -> Message | None:
        """A message with the whole body, or the message of a disconnection; None if the body is too large."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message
            body += message.get("body", b"")
            if len(body) > self._settings.max_body_bytes:
                return None
            if not message.get("more_body", False):
                return {"type": "http.request", "body": bytes(body), "more_body": False}


def _unauthorized(code: str, message: str) -> Problem:
    return Problem(401, "authentication_error", message, code=code)


def _replayed(first: Message, receive: Receive) -> Receive:
    """``receive`` with one message before the others."""
    messages = [first]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


class RequestLog:
    """Logs and counts each request, and adds the header ``X-Request-Id`` to its response.

    Args:
        app: the next application.
        metrics: counters of requests.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, started, status = uuid.uuid4().hex, time.monotonic(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            seconds = time.monotonic() - started
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            fields = {"id": request_id, "method": scope["method"], "path": scope["path"], "status": status}
            LOG.info("request", extra={"fields": {**fields, "milliseconds": round(1000 * seconds, 3)}})
