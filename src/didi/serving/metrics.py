"""Metrics of a server in the text format of Prometheus."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from didi.serving.engine import Engine
from didi.serving.job import Job

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Upper bounds of the buckets of histograms, in seconds."""


class Metrics:
    """Counters and histograms of requests and jobs, and the metrics of the engine, in a registry of its own.

    Args:
        engine: the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))
        self.requests = Counter(
            "didi_requests", "Responses, by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "didi_request_seconds", "Time to the end of a response.", ["route"], buckets=BUCKETS, registry=self.registry
        )
        self.waited = Histogram(
            "didi_queue_seconds",
            "Time from the arrival of a job to its start.",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.tokens = Counter("didi_tokens", "Tokens drawn in finished sequences.", registry=self.registry)
        self.failed = Counter(
            "didi_failed_jobs", "Jobs without a sample, by reason.", ["reason"], registry=self.registry
        )

    def job_ended(self, job: Job) -> None:
        """Count a job that has ended: its time in the queue, and its tokens or the reason of its failure."""
        if job.started:
            self.waited.observe(job.started - job.created)
        if job.error is None:
            self.tokens.inc(int(job.plan.canvas.is_free.sum()))
        else:
            self.failed.labels(type(job.error).__name__).inc()

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self.registry)


class EngineCollector:
    """Collects the metrics of the engine when they are exported.

    Args:
        engine: the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """Gauges of the queue and counters of the passes."""
        scheduler = self._engine.scheduler
        yield GaugeMetricFamily("didi_waiting_jobs", "Jobs in the queue.", self._engine.num_waiting)
        yield GaugeMetricFamily("didi_running_jobs", "Jobs that have started.", len(scheduler.running))
        yield CounterMetricFamily(
            "didi_shared_passes", "Trunk passes for groups of one or more jobs.", scheduler.num_passes
        )
        yield CounterMetricFamily("didi_shared_pass_rows", "Sequences in these passes.", scheduler.num_rows)
