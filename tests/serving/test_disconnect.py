"""Streamed requests that end before their first event: their jobs leave the scheduler at once."""

import asyncio
import contextlib
import json

import pytest
from sse_starlette import EventSourceResponse

from didi.serving import completions
from didi.serving.app import make_app
from didi.serving.engine import Engine
from didi.serving.settings import ServerSettings

BODIES = {
    "/v1/generate": {"nfe": 1000, "num_samples": 8, "sampler": "published", "stream": True},
    "/v1/completions": {"prompt": [1], "max_tokens": 15, "nfe": 1000, "n": 8, "sampler": "published", "stream": True},
}


@pytest.fixture
def submitted(monkeypatch):
    """Jobs that were submitted to an engine."""
    jobs, submit = [], Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda engine, new: submit(engine, new) or jobs.extend(new))
    return jobs


async def blocked(message):
    """The ASGI ``send`` of a client that accepts no byte of a stream."""
    assert message.get("status") == 200, message
    await asyncio.Event().wait()


async def only_started(message):
    """The ASGI ``send`` of a client that reads the status of a stream and nothing after it."""
    if message["type"] != "http.response.start":
        await asyncio.Event().wait()


async def accepted(_):
    """The ASGI ``send`` of a client that accepts everything."""


def leaves_no_job(bundle, path, send, *, is_connected=False, **settings):
    """Whether the server has no job within a second after a streamed request.

    Args:
        bundle: the served bundle.
        path: route of the request.
        send: receives the messages of the response.
        is_connected: whether the client stays connected; otherwise it disconnects once its request is sent.
        settings: fields of ``ServerSettings``.
    """
    app = make_app({"toy": bundle}, ServerSettings(**settings))
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b"", "app": app}
    scope |= {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "server": ("x", 80), "root_path": ""}
    messages = [{"type": "http.request", "body": json.dumps(BODIES[path]).encode()}]

    async def receive():
        if not messages and is_connected:
            await asyncio.Event().wait()
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def run():
        async with app.router.lifespan_context(app):
            with contextlib.suppress(ZeroDivisionError):  # raised by the tests
                await asyncio.wait_for(app(scope, receive, send), 10)
            scheduler = app.state.server.engine.scheduler
            for _ in range(100):
                await asyncio.sleep(0.01)
                if scheduler.is_idle and not app.state.server.engine.num_waiting:
                    return True
            return False

    return asyncio.run(run())


@pytest.mark.parametrize("path", BODIES)
def test_the_job_of_a_client_that_disconnects_before_the_first_event_is_cancelled(toy, path, submitted):
    assert leaves_no_job(toy, path, blocked)
    assert len(submitted) == 1


@pytest.mark.parametrize("path", BODIES)
def test_a_client_that_reads_nothing_is_disconnected_without_an_error(toy, path, caplog):
    with caplog.at_level("INFO", "didi.serving"):
        assert leaves_no_job(toy, path, only_started, is_connected=True, timeout=0.3)
    assert "a client of a stream reads nothing" in caplog.text


@pytest.mark.parametrize("path", BODIES)
def test_a_response_that_fails_before_its_first_event_leaves_no_job(toy, path, submitted, monkeypatch):
    async def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(EventSourceResponse, "__call__", fail)
    assert leaves_no_job(toy, path, accepted)
    assert len(submitted) == 1


def test_a_response_that_cannot_be_built_leaves_no_job(toy, monkeypatch):
    calls = []
    monkeypatch.setattr(completions, "CompletionBuilder", lambda *args: calls.append(args) or 1 / 0)
    assert leaves_no_job(toy, "/v1/completions", accepted)
    assert len(calls) == 1
