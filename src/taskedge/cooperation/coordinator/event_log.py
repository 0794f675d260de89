"""The event log of a run: one JSON object per line, written as things happen (docs/cooperation.md lists the events)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskedge.errors import InputError

Event = dict[str, Any]
"""One line of the log: ``event``, its name, ``at``, seconds since the process started the run, and its fields."""
RUN_FILE, LOG_FILE = "run.json", "log.jsonl"
"""In a run's folder: the settings of the run, and its event log."""


class EventLog:
    """Appends events to a file and passes them to ``on_event``.

    Args:
        path: The file. It is created with the first event.
        on_event: Called with each event after it is written, for a table on the screen or a test.
    """

    def __init__(self, path: Path, on_event: Callable[[Event], None] = lambda _: None) -> None:
        self._path, self._on_event = path, on_event
        self._started = time.monotonic()

    def write(self, event: str, **fields: Any) -> None:
        """Write one event; ``fields`` are JSON-able.

        Raises:
            InputError: The file cannot be written.
        """
        line = {"event": event, "at": round(time.monotonic() - self._started, 4), **fields}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written ({error.strerror}): make room and resume") from None
        self._on_event(line)
