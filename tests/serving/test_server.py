"""``serve`` fails with a message that has the cause if the server cannot listen or start."""

import logging
import signal

import pytest

from didi.errors import DidiError
from didi.serving.app import make_app
from didi.serving.models import ServedModel
from didi.serving.server import Server, serve
from didi.serving.settings import ServerSettings


@pytest.fixture(autouse=True)
def restored():
    """Restore logging and signal handlers after a test; ``serve`` changes them for the whole process."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    loggers = [logging.getLogger(name) for name in ("didi.serving", "uvicorn")]
    states = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for number, handler in signals.items():
        signal.signal(number, handler)
    for logger, handlers, propagate, level in states:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_an_address_of_another_machine_is_refused_with_the_cause(toy):
    """192.0.2.0/24 is reserved for documentation."""
    settings = ServerSettings(token="x")
    with pytest.raises(DidiError, match=r"^cannot listen on 192\.0\.2\.1:8000: .*assign requested address"):
        serve(make_app({"toy": toy}, settings), settings, "192.0.2.1", 8000)


def test_a_failing_start_is_not_reported_as_an_address_in_use(toy, monkeypatch):
    monkeypatch.setattr(ServedModel, "check_weights", lambda _: 1 / 0)
    settings = ServerSettings()
    with pytest.raises(DidiError, match=r"^the server cannot start; its log has the error$"):
        serve(make_app({"toy": toy}, settings), settings, "127.0.0.1", 0)


def test_a_start_that_fails_without_an_exception_is_an_error(toy, monkeypatch):
    """uvicorn before 0.54 returns instead of raising an exception."""
    monkeypatch.setattr(Server, "run", lambda _: None)
    with pytest.raises(DidiError, match=r"^the server cannot start; its log has the error$"):
        serve(make_app({"toy": toy}), ServerSettings(), "127.0.0.1", 0)
