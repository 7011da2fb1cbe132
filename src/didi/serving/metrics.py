"""Figures of a server in the text form of Prometheus."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from didi.serving.engine import Engine
from didi.serving.job import Job

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of requests and sequences, and gauges of the engine; each server has its own.

    Args:
        engine: whose queue and passes are shown.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineFigures(engine))
        here = self.registry
        self.requests = Counter("didi_requests", "Answers, by route and status.", ["route", "status"], registry=here)
        self.seconds = Histogram(
            "didi_request_seconds", "Time to the end of an answer.", ["route"], buckets=SECONDS, registry=here
        )
        self.waited = Histogram("didi_queue_seconds", "From arrival to start.", buckets=SECONDS, registry=here)
        self.tokens = Counter("didi_tokens", "Tokens drawn in finished sequences.", registry=here)
        self.failed = Counter("didi_failed_jobs", "Jobs without a sample, by reason.", ["reason"], registry=here)

    def job_ended(self, job: Job) -> None:
        """Count a job."""
        if job.started:
            self.waited.observe(job.started - job.created)
        if job.error is None:
            self.tokens.inc(int(job.plan.canvas.is_free.sum()))
        else:
            self.failed.labels(type(job.error).__name__).inc()

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self.registry)


class EngineFigures:
    """What the engine does now, read when it is asked for.

    Args:
        engine: that is read.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """Gauges of the queue and counters of the passes."""
        scheduler = self._engine.scheduler
        yield GaugeMetricFamily("didi_waiting_jobs", "Jobs in the queue.", self._engine.num_waiting)
        yield GaugeMetricFamily("didi_running_jobs", "Jobs that share passes.", len(scheduler.running))
        yield CounterMetricFamily("didi_shared_passes", "Passes of a trunk for one job or more.", scheduler.num_passes)
        yield CounterMetricFamily("didi_shared_pass_rows", "Sequences in those passes.", scheduler.num_rows)
