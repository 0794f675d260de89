"""Metrics of a server in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskedge.serving.engine import Engine, Work
from taskedge.serving.task_files import ServedTasks

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class ServingMetrics:
    """Counters of requests, rows, tokens and batches; gauges of the queue and of the tasks.

    Rows are counted for tasks that are served, and requests for the server's own paths, so what clients send does not
    make new series.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry: CollectorRegistry = CollectorRegistry()
        self.requests = Counter(
            "taskedge_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "taskedge_request_seconds", "Seconds of a request.", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self.rows = Counter("taskedge_rows", "Answered rows by task.", ["task"], registry=self.registry)
        self.tokens = Counter("taskedge_tokens", "Tokens of answered rows.", registry=self.registry)
        self.batch_rows = Histogram("taskedge_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=self.registry)
        self.batch_seconds = Histogram(
            "taskedge_batch_seconds", "Seconds of a batch.", buckets=_SECONDS, registry=self.registry
        )
        self.batch_tasks = Histogram(
            "taskedge_batch_tasks", "Tasks that share a batch.", buckets=_ROWS, registry=self.registry
        )

    def watch(self, engine: Engine, tasks: ServedTasks) -> None:
        """Read the queue and the tasks whenever the metrics are read."""
        from prometheus_client import Gauge

        for name, text, value in (
            ("taskedge_rows_waiting", "Rows in the queue.", lambda: engine.num_waiting),
            ("taskedge_tasks", "Served tasks.", lambda: len(tasks.all())),
            ("taskedge_tasks_refused", "Files that cannot be served.", lambda: len(tasks.errors)),
            ("taskedge_tasks_bytes", "Memory of all tasks.", lambda: sum(each.memory_bytes for each in tasks.all())),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)

    def on_batch(self, works: Sequence[Work], seconds: float) -> None:
        """Count a batch that was answered."""
        self.batch_rows.observe(len(works))
        self.batch_seconds.observe(seconds)
        self.batch_tasks.observe(len({id(work.task) for work in works}))
        self.tokens.inc(sum(work.num_tokens for work in works))
        for work in works:
            self.rows.labels(work.task.name).inc()

    def text(self) -> bytes:
        """Return all metrics as text."""
        from prometheus_client import generate_latest

        content: bytes = generate_latest(self.registry)
        return content
