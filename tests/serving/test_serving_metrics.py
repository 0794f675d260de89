"""Metrics of batches."""

from __future__ import annotations

import time

from taskedge.serving.engine import Work
from taskedge.serving.request_bodies import text_rows
from taskedge.serving.serving_metrics import ServingMetrics


def test_a_batch_is_counted(served):
    tasks, engine = served
    metrics = ServingMetrics()
    metrics.watch(engine, tasks)
    works = [
        Work(tasks.get(name), row, time.monotonic())
        for name in "ab"
        for row in text_rows(tasks.get(name), ["a film"])[0]
    ]
    metrics.on_batch(works, 0.5)
    text = metrics.text().decode()
    assert 'taskedge_rows_total{task="b"} 1.0' in text
    assert "taskedge_tokens_total 8.0" in text
    assert "taskedge_batch_tasks_sum 2.0" in text
    assert "taskedge_batch_seconds_sum 0.5" in text
    assert "taskedge_rows_waiting 0.0" in text
    assert f"taskedge_tasks_bytes {float(sum(task.memory_bytes for task in tasks.all()))}" in text
