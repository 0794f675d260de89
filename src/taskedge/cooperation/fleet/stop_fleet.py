"""Ends what runs for a fleet, in good order: first its coordinator, then its server."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from taskedge.cooperation.coordinator.event_log import RUN
from taskedge.cooperation.fleet.coordinator_lock import coordinated, coordinator
from taskedge.cooperation.fleet.device_registry import Fleet
from taskedge.cooperation.fleet.fleet_status import fleet_place, run_place
from taskedge.errors import InputError, TaskEdgeError

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Ended:
    """The processes that were ended; None: there was none."""

    coordinator: int | None
    server: int | None
    resumable: bool
    """Whether the folder holds a run to go on with."""


def stop(folder: Path, seconds: float, *, keep_server: bool = False) -> Ended:
    """Ends the coordinator that works with a fleet's folder (or that of a run on one machine), and the fleet's server.

    The coordinator is told to end and has ``seconds`` to: what it committed stays, and the run can be resumed. It is
    never killed.

    Raises:
        InputError: nothing of ours is in the folder; the coordinator does not say which process it is, or is another
            user's.
        TaskEdgeError: it has not ended in time.
    """
    place = fleet_place(folder)
    if not coordinated(folder) and not (place / "fleet.json").exists() and not (run_place(folder) / RUN).exists():
        raise InputError(f"{folder}: holds no fleet and no run: name the folder of one with --folder")
    pid = coordinator(folder)
    if pid is not None:
        _end(pid, folder, seconds)
    server = None
    if not keep_server and (place / "fleet.json").exists():
        fleet = Fleet.open(place)
        server = fleet.server.pid
        fleet.server.stop()
    return Ended(pid, server, (run_place(folder) / RUN).exists())


def _end(pid: int, folder: Path, seconds: float) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise InputError(f"{folder}: its coordinator is another user's process ({pid}): ask as that user") from None
    deadline = time.monotonic() + seconds
    while coordinated(folder):
        if time.monotonic() > deadline:
            raise TaskEdgeError(
                f"{folder}: the coordinator (process {pid}) was told to end and still runs after {seconds:g} s: "
                f"wait for it, or kill -9 {pid}; what it committed stays either way"
            )
        time.sleep(_POLL_SECONDS)
