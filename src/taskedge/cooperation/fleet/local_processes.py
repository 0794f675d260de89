"""Devices as processes on this machine, which end with the process that started them, however that ends."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_STOP_SECONDS = 5.0


class Processes:
    """Processes by name, and a guard that kills them when this process is gone."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, Path] = {}
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Starts one; what it says goes to ``log``."""
        with log.open("wb") as output:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                start_new_session=True,  # a Ctrl-C is for the coordinator, which ends the devices in good order
            )
        self._logs[name] = log

    def guard(self, *others: int | None) -> None:
        """From now on all of them, and the processes ``others``, are killed when this process ends without ``stop``.

        A shell waits for the end of a pipe that only this process holds open: a kill -9 ends it, too.
        """
        pids = [*filter(None, others), *(process.pid for process in self._running.values())]
        self._end_guard()
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -9 "$@" 2>/dev/null', "taskedge-guard", *map(str, pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def failed(self) -> dict[str, str]:
        """Those that ended with a fault, with the last line that they said."""
        return {name: _last_line(self._logs[name]) for name, it in self._running.items() if it.poll()}

    def running(self) -> list[str]:
        """Names of those that have not ended."""
        return [name for name, process in self._running.items() if process.poll() is None]

    def stop(self, patience: float = 0.0) -> None:
        """Ends all of them: who does not end by himself within ``patience`` seconds is told to, then killed."""
        for how, seconds in ((None, patience), ("terminate", _STOP_SECONDS), ("kill", _STOP_SECONDS)):
            left = [process for process in self._running.values() if process.poll() is None]
            for process in left if how else ():
                getattr(process, str(how))()
            end = time.monotonic() + seconds
            for process in left:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))

    def end(self) -> None:
        """Ends the guard, when all that it guards has ended."""
        self._end_guard()

    def _end_guard(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].removeprefix("taskedge: ")
    return "it said nothing"
