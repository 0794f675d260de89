"""Stop the processes of a fleet in order: first the coordinator, then the server."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from taskedge.cooperation.coordinator.event_log import RUN_FILE
from taskedge.cooperation.fleet.coordinator_lock import coordinator_pid, is_coordinated
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.fleet.fleet_status import registry_folder, run_folder
from taskedge.errors import InputError, TaskEdgeError

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class StoppedProcesses:
    """Process ids of what was stopped; None if it was not running."""

    coordinator: int | None
    server: int | None
    resumable: bool
    """Whether the folder has a run that can be resumed."""


def stop_fleet(folder: Path, seconds: float, *, keep_server: bool = False) -> StoppedProcesses:
    """Stop the coordinator that works with a folder, and the fleet's server.

    The coordinator gets SIGTERM and has ``seconds`` to end. It is never killed. Committed versions stay, so its run
    can be resumed.

    Args:
        folder: The folder of a fleet, or of a run on one machine.
        seconds: How long to wait for the coordinator.
        keep_server: Whether to leave the server running.

    Raises:
        InputError: The folder has no fleet and no run. Or the coordinator is another user's process, or its process
            id is not known.
        TaskEdgeError: The coordinator did not end in time.
    """
    registry_path = registry_folder(folder)
    has_registry = (registry_path / "fleet.json").exists()
    resumable = (run_folder(folder) / RUN_FILE).exists()
    if not is_coordinated(folder) and not has_registry and not resumable:
        raise InputError(f"{folder}: holds no fleet and no run: name the folder of one with --folder")
    pid = coordinator_pid(folder)
    if pid is not None:
        _end_coordinator(pid, folder, seconds)
    server_pid = None
    if not keep_server and has_registry:
        server = DeviceRegistry.open(registry_path).server
        server_pid = server.pid
        server.stop()
    return StoppedProcesses(pid, server_pid, (run_folder(folder) / RUN_FILE).exists())


def _end_coordinator(pid: int, folder: Path, seconds: float) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise InputError(f"{folder}: its coordinator is another user's process ({pid}): ask as that user") from None
    deadline = time.monotonic() + seconds
    while is_coordinated(folder):
        if time.monotonic() > deadline:
            raise TaskEdgeError(
                f"{folder}: the coordinator (process {pid}) got SIGTERM and still runs after {seconds:g} s: "
                f"wait for it, or kill -9 {pid}; what it committed stays either way"
            )
        time.sleep(_POLL_SECONDS)
