"""The log of a run: one JSON object a line, written as things happen (docs/cooperation.md lists the events)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskedge.errors import InputError

Event = dict[str, Any]
RUN, LOG = "run.json", "log.jsonl"
"""In a run's folder: who it is, and what happened."""


class RunLog:
    """Appends events to a file and hands them to ``on_event``, for a table on the screen or a test."""

    def __init__(self, path: Path, on_event: Callable[[Event], None] = lambda _: None) -> None:
        self._path, self._on_event = path, on_event
        self._started = time.monotonic()

    def write(self, event: str, **facts: Any) -> None:
        """One event; ``at`` is seconds since this process began the run.

        Raises:
            InputError: the file cannot be written.
        """
        line = {"event": event, "at": round(time.monotonic() - self._started, 4), **facts}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written ({error.strerror}): make room and resume") from None
        self._on_event(line)
