"""Bundles, clients and servers for the tests of serving."""

import contextlib
import json
import random
import secrets
import socket
import threading

import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

import didi
from didi.models.bundle import Bundle
from didi.serving.app import make_app
from didi.serving.settings import ServerSettings


@pytest.fixture(autouse=True)
def request_seeds(monkeypatch):
    """Requests without a seed get different seeds, the same ones in each run of a test."""
    monkeypatch.setattr(secrets, "randbelow", random.Random(0).randrange)


@pytest.fixture(scope="session")
def news():
    return didi.load("tiny-news")


@pytest.fixture
def toy(make_dit):
    """A model of 16 positions over 40 symbols, without tokenizer."""
    return Bundle(teacher=make_dit(vocab_size=40, length=16, scale=3.0), name="toy")


@pytest.fixture(scope="session")
def client(news):
    """A client of a server of tiny-news with the default settings."""
    with TestClient(make_app({"news": news}), raise_server_exceptions=False) as test_client:
        yield test_client


@pytest.fixture
def client_of():
    """A function that starts a server of some bundles with some settings, and returns a client of it."""
    with contextlib.ExitStack() as stack:
        yield lambda bundles, **settings: stack.enter_context(
            TestClient(make_app(bundles, ServerSettings(**settings)), raise_server_exceptions=False)
        )


@pytest.fixture
def listening():
    """A function that starts a server on loopback, in a thread, and returns the server and its address."""
    with contextlib.ExitStack() as stack:
        yield lambda bundles, **settings: stack.enter_context(_listening(make_app(bundles, ServerSettings(**settings))))


@contextlib.contextmanager
def _listening(app):
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    # Limits the bytes that the system buffers for a client that reads slowly.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    yield server, f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def events_of(text):
    """Names and data of server-sent events; the data of [DONE] is None."""
    events = []
    for block in text.strip().replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            events.append((fields.get("event"), json.loads(fields["data"]) if fields["data"] != "[DONE]" else None))
    return events


def with_nan(bundle):
    """The bundle, after one weight of its network is set to NaN."""
    with torch.no_grad():
        bundle.network().blocks[0].attn_qkv.weight[0, 0] = torch.nan
    return bundle
