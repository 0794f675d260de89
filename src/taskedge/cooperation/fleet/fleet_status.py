"""How a fleet and its run stand, read from their folders: nothing is asked over the wire."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from taskedge.cooperation.coordinator.event_log import LOG, RUN, Event
from taskedge.cooperation.fleet.coordinator_lock import coordinated
from taskedge.cooperation.fleet.device_registry import Fleet
from taskedge.errors import InputError

RUN_FOLDER, LAST_RUN, FLEET_FOLDER = "run", "last-run", "fleet"
"""Inside a fleet's folder: the run that goes on or can be resumed, and the last one that was finished. A run on one
machine has its fleet's folder beside its run's."""


def fleet_place(folder: Path) -> Path:
    """Where the fleet's files are: in its folder, or beside the run on one machine."""
    inner = folder / FLEET_FOLDER
    return inner if (inner / "fleet.json").exists() else folder


def run_place(folder: Path) -> Path:
    """Where a run that can go on is."""
    return folder / RUN_FOLDER


def report(folder: Path) -> dict[str, Any]:
    """JSON-able facts of the fleet in ``folder`` (or of a run on one machine there) and its run.

    Raises:
        InputError: it is neither.
    """
    fleet = Fleet.open(fleet_place(folder))
    live = coordinated(folder)
    found = next((path for name in (RUN_FOLDER, LAST_RUN) if (path := folder / name).joinpath(RUN).exists()), None)
    events = _events(found / LOG) if found else []
    return {
        "fleet": fleet.name,
        "server": {"address": f"{fleet.listen}:{fleet.port}", "runs": fleet.server.pid is not None},
        "coordinator_runs": live,
        "devices": [
            {"name": name, "enrolled": one.enrolled, "expires": one.expires, **_device(name, events)}
            for name, one in sorted(fleet.devices.items())
        ],
        "run": None if found is None else _run(found, events, live),
    }


def _device(name: str, events: list[Event]) -> dict[str, Any]:
    """Whether it was there when last heard of (None: never heard of), and what stands in its way."""
    present, note = None, ""
    for event in events:
        if event.get("device") != name:
            continue
        if event["event"] in ("joined", "left"):
            present, note = event["event"] == "joined", ""
        elif event["event"] in ("unfit", "quarantined"):
            note = f"{event['event']}: {event['why']}"
    return {"present": present, "note": note}


def _run(folder: Path, events: list[Event], live: bool) -> dict[str, Any]:
    try:
        settings = json.loads((folder / RUN).read_bytes())["identity"]
        rounds = int(settings["rounds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / RUN}: damaged ({error})") from None
    last: Event = next((event for event in reversed(events) if event["event"] == "round"), {})
    done = bool(events) and events[-1]["event"] == "done"
    return {
        "state": "done" if done else "goes on" if live else "interrupted",
        "round": last.get("round", 0),
        "rounds": rounds,
        "version": last.get("version", 0),
        "loss": last.get("loss"),
        "mode": settings["mode"],
        "folder": str(folder),
    }


def _events(log: Path) -> list[Event]:
    """Of the log, as far as it is written."""
    found = []
    if log.exists():
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # the line that is just being written
    return found
