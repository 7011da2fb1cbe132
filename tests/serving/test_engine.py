"""The engine's thread: the jobs that remain when it stops, and errors while jobs end."""

import asyncio

import httpx
import pytest

import didi
from didi.serving.app import make_app
from didi.serving.engine import Engine, Overloaded, Stopping
from didi.serving.job import Cancelled
from didi.serving.models import ServedModel
from didi.serving.scheduler import Scheduler

from .conftest import with_nan
from .test_faults import until
from .test_scheduler import job_of


def test_jobs_that_outlast_the_drain_end_with_an_error(toy):
    engine = Engine(Scheduler(1), max_queue=4)
    jobs = [job_of(toy, seed=seed, nfe=2000, sampler="published") for seed in range(2)]  # one runs, one waits
    engine.start()
    engine.submit(jobs)
    engine.end_within(0.2)
    until(lambda: all(job.has_ended for job in jobs), seconds=20)
    engine.stop()
    assert [type(job.error) for job in jobs] == [Stopping, Stopping]
    assert jobs[0].num_moves > 0


def test_unfinished_jobs_of_a_stopped_engine_end_with_the_error_stopping(toy):
    """Not with ``Cancelled``, whose message is that the client has disconnected."""
    engine = Engine(Scheduler(1), max_queue=4)
    jobs = [job_of(toy, seed=seed, nfe=2000, sampler="published") for seed in range(2)]  # one runs, one waits
    engine.start()
    engine.submit(jobs)
    engine.stop()
    assert [type(job.error) for job in jobs] == [Stopping, Stopping]


@pytest.mark.slow
def test_a_stopping_engine_refuses_new_jobs_and_finishes_the_others(toy):
    engine = Engine(Scheduler(1), max_queue=4)
    with pytest.raises(Stopping):
        engine.submit([job_of(toy)])
    engine.start()
    jobs = [job_of(toy, seed=seed, nfe=3) for seed in range(4)]
    engine.submit(jobs)
    with pytest.raises(Overloaded):
        engine.submit([job_of(toy) for _ in range(4)])
    engine.stop(timeout=20.0)
    assert [job.tokens.tolist() for job in jobs] == [
        didi.generate(toy, num_samples=1, nfe=3, seed=seed).tokens.tolist() for seed in range(4)
    ]
    with pytest.raises(Stopping):
        engine.submit([job_of(toy)])


def test_the_engine_stops_when_the_application_ends_with_an_exception(toy):
    app = make_app({"toy": toy})

    async def run():
        async with app.router.lifespan_context(app):
            assert app.state.server.engine.is_running
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())
    assert not app.state.server.engine.is_running


def test_a_failing_check_of_the_weights_fails_only_its_request(toy, listening, monkeypatch):
    """The check runs when a job ends; its exception must neither leave the client waiting nor end other jobs."""
    server, url = listening({"toy": toy})
    monkeypatch.setattr(ServedModel, "check_weights", lambda _: 1 / 0)
    with_nan(toy)
    with httpx.Client(base_url=url, timeout=5) as client:
        answer = client.post("/v1/generate", json={"nfe": 2})
    assert answer.status_code == 500
    assert server.config.app.state.server.engine.is_running


def test_a_sampler_that_fails_when_it_is_closed_ends_only_its_job(toy):
    """``on_end`` is called nevertheless; without it, the client would wait for an event that never comes."""

    def steps():
        try:
            yield
        finally:
            raise ZeroDivisionError

    ended = []
    jobs = [job_of(toy, seed=seed, nfe=4) for seed in range(2)]
    scheduler = Scheduler(4)
    scheduler.waiting.extend(jobs)
    scheduler.step()
    jobs[0].on_end = ended.append
    jobs[0]._run = steps()
    next(jobs[0]._run)
    jobs[0].cancel()
    while not scheduler.is_idle:
        scheduler.step()
    assert ended == jobs[:1]
    assert isinstance(jobs[0].error, Cancelled)
    alone = didi.generate(toy, num_samples=1, nfe=4, seed=1)
    assert jobs[1].tokens.tolist() == alone.tokens.tolist()
