"""The state of a fleet and its run, read from their folders. Nothing is sent over the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskedge.cooperation.coordinator.event_log import LOG_FILE, RUN_FILE
from taskedge.cooperation.coordinator.log_summary import LogSummary, summarize_log
from taskedge.cooperation.coordinator.run_folder import read_run_file
from taskedge.cooperation.fleet.coordinator_lock import is_coordinated
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.errors import InputError

RUN_FOLDER, LAST_RUN, FLEET_FOLDER = "run", "last-run", "fleet"
"""In a fleet's folder: the run that is running or can be resumed, and the last finished one. A run on one machine has
the folder of its fleet beside the folder of its run."""


def registry_folder(folder: Path) -> Path:
    """Return the folder of the fleet: ``folder``, or the one inside the folder of a run on one machine."""
    inner = folder / FLEET_FOLDER
    return inner if (inner / "fleet.json").exists() else folder


def run_folder(folder: Path) -> Path:
    """Return the folder of the run that is running or can be resumed."""
    return folder / RUN_FOLDER


def fleet_status(folder: Path) -> dict[str, Any]:
    """Return the state of a fleet, its devices and its run, JSON-able.

    Args:
        folder: The folder of a fleet, or of a run on one machine.

    Raises:
        InputError: It is neither.
    """
    registry = DeviceRegistry.open(registry_folder(folder))
    coordinator_runs = is_coordinated(folder)
    runs = [folder / name for name in (RUN_FOLDER, LAST_RUN) if (folder / name / RUN_FILE).exists()]
    summary = summarize_log(runs[0] / LOG_FILE) if runs else LogSummary()
    return {
        "fleet": registry.name,
        "server": {"address": f"{registry.listen}:{registry.port}", "runs": registry.server.pid is not None},
        "coordinator_runs": coordinator_runs,
        "devices": [
            {"name": name, "enrolled": entry.enrolled, "expires": entry.expires, **_device_status(name, summary)}
            for name, entry in sorted(registry.devices.items())
        ],
        "run": _run_status(runs[0], summary, coordinator_runs) if runs else None,
    }


def _device_status(name: str, summary: LogSummary) -> dict[str, Any]:
    """Return whether a device was present at its last event (None: it has none), and why it gets no tasks."""
    return {"present": summary.present.get(name), "note": summary.notes.get(name, "")}


def _run_status(folder: Path, summary: LogSummary, coordinator_runs: bool) -> dict[str, Any]:
    _, settings = read_run_file(folder)
    try:
        rounds, mode = int(settings["rounds"]), settings["mode"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / RUN_FILE}: damaged ({error})") from None
    last_round = summary.last_round
    is_done = summary.last_event == "done"
    unfinished_state = "running" if coordinator_runs else "interrupted"
    return {
        "state": "done" if is_done else unfinished_state,
        "round": last_round.get("round", 0),
        "rounds": rounds,
        "version": last_round.get("version", 0),
        "loss": last_round.get("loss"),
        "mode": mode,
        "folder": str(folder),
    }
