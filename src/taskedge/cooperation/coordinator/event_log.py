"""The event log of a run: one JSON object per line, written as things happen (docs/cooperation.md lists the events)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskedge.cooperation.coordinator.log_summary import EVENTS_PER_SUMMARY, LogSummary, summarize_log
from taskedge.cooperation.protocol.strict_json import finite_json
from taskedge.errors import InputError, TaskEdgeError

Event = dict[str, Any]
"""One line of the log: ``event``, its name, ``at``, seconds since the process started the run, and its fields."""
MAX_WHY_CHARACTERS = 4096
RUN_FILE, LOG_FILE = "run.json", "log.jsonl"
"""In a run's folder: the settings of the run, and its event log."""


class EventLog:
    """Appends events to a file and passes them to ``on_event``.

    Every line is valid JSON: numbers that JSON does not have are written as ``null``. Reasons, which may quote a
    device, are cut.

    Args:
        path: The file. It is created with the first event.
        on_event: Called with each event after it is written, for a table on the screen or a test.
    """

    def __init__(self, path: Path, on_event: Callable[[Event], None] = lambda _: None) -> None:
        self._path, self._on_event = path, on_event
        self._started = time.monotonic()
        self._summary: LogSummary | None = None
        """Of the events so far; None until the first one."""
        self._not_summarized = 0

    def write(self, event: str, **fields: Any) -> None:
        """Write one event; ``fields`` are JSON-able.

        Raises:
            InputError: The file cannot be written.
        """
        if isinstance(why := fields.get("why"), str):
            fields["why"] = why[:MAX_WHY_CHARACTERS]
        line = finite_json({"event": event, "at": round(time.monotonic() - self._started, 4), **fields})
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        try:
            if self._summary is None:
                self._summary = summarize_log(self._path)
            with self._path.open("ab") as file:
                file.write(text)
            self._summarize(line, len(text))
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written ({error.strerror}): make room and resume") from None
        except TaskEdgeError as error:
            raise InputError(f"{error}: make room and resume") from None
        self._on_event(line)

    def _summarize(self, line: Event, num_bytes: int) -> None:
        assert self._summary is not None
        self._summary.add(line, num_bytes)
        self._not_summarized += 1
        if self._not_summarized >= EVENTS_PER_SUMMARY:
            self._summary.write(self._path.parent)
            self._not_summarized = 0
