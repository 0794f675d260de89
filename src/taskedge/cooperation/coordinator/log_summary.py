"""A summary of a run's event log: what ``status`` shows, without reading the whole log.

The summary states the bytes of the log that it covers. A reader takes it and adds the events behind them. It is written
anew every ``EVENTS_PER_SUMMARY`` events, so a reader reads that many lines, however long the log is. It is derived: a
missing or damaged one means that the log is read from its beginning.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taskedge.io.atomic import write_atomic

EVENTS_PER_SUMMARY = 256
SUMMARY_FILE = "log-summary.json"
"""In a run's folder, beside the event log."""
_FORMAT = 1


@dataclass
class LogSummary:
    """The state that a number of events lead to."""

    num_bytes: int = 0
    """Bytes of the log that it covers."""
    last_event: str = ""
    last_round: dict[str, Any] = field(default_factory=dict)
    """Round, version and loss of the last completed round; empty before it."""
    present: dict[str, bool] = field(default_factory=dict)
    """Whether a device was there at its last event."""
    notes: dict[str, str] = field(default_factory=dict)
    """Why a device gets no tasks."""

    def add(self, event: dict[str, Any], num_bytes: int) -> None:
        """Take in one event, whose line has ``num_bytes``."""
        self.num_bytes += num_bytes
        name, device = event.get("event"), event.get("device")
        self.last_event = str(name)
        if name == "round":
            self.last_round = {key: event.get(key) for key in ("round", "version", "loss")}
        elif name in ("joined", "left"):
            self.present[str(device)] = name == "joined"
            self.notes.pop(str(device), None)
        elif name in ("unfit", "quarantined", "flooded"):
            self.notes[str(device)] = f"{name}: {event.get('why')}"

    def write(self, folder: Path) -> None:
        """Write the summary into the folder of its run."""
        write_atomic(folder / SUMMARY_FILE, json.dumps({"format": _FORMAT} | asdict(self)).encode())


def summarize_log(log: Path) -> LogSummary:
    """Return the state after all whole lines of an event log."""
    if not log.exists():
        return LogSummary()
    summary = _read(log.parent / SUMMARY_FILE)
    if summary.num_bytes > log.stat().st_size:
        summary = LogSummary()  # of another log
    with log.open("rb") as file:
        file.seek(summary.num_bytes)
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                if not line.endswith(b"\n"):
                    break  # a line that is being written
                event = None
            if isinstance(event, dict):
                summary.add(event, len(line))
            else:
                summary.num_bytes += len(line)
    return summary


def _read(path: Path) -> LogSummary:
    try:
        stored = json.loads(path.read_bytes())
        if stored.pop("format") == _FORMAT:
            return LogSummary(**stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return LogSummary()
