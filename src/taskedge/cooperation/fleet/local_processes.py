"""Devices as processes on this machine, which end with the process that started them, however that ends."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_STOP_SECONDS = 5.0


class LocalProcesses:
    """Child processes by name, and a guard process that kills them if this process ends without :meth:`stop`.

    Args:
        stop_seconds: How long a process has to end after SIGTERM, before it is killed.
    """

    def __init__(self, stop_seconds: float = _STOP_SECONDS) -> None:
        self._stop_seconds = stop_seconds
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, Path] = {}
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Start a process that writes its output to ``log``."""
        with log.open("wb") as output:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C reaches only the coordinator, which ends the devices in order
            )
        self._logs[name] = log

    def guard(self, *other_pids: int | None) -> None:
        """Have all processes started so far, and ``other_pids``, killed when this process ends without :meth:`stop`.

        The guard is a shell that waits for the end of a pipe which only this process holds open, so it also acts when
        this process is killed with SIGKILL.
        """
        pids = [pid for pid in other_pids if pid] + list(self.pids().values())
        self.end_guard()
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -9 "$@" 2>/dev/null', "taskedge-guard", *map(str, pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def pids(self) -> dict[str, int]:
        """Return the process ids by name, of ended processes too."""
        return {name: process.pid for name, process in self._processes.items()}

    @property
    def guard_pid(self) -> int | None:
        """Process id of the guard; None without one."""
        return None if self._guard is None else self._guard.pid

    def failures(self) -> dict[str, str]:
        """Return the processes that ended with an error, with the last line of their logs."""
        return {name: _last_line(self._logs[name]) for name, process in self._processes.items() if process.poll()}

    def running(self) -> list[str]:
        """Return the names of the processes that have not ended."""
        return [name for name, process in self._processes.items() if process.poll() is None]

    def stop(self, patience: float = 0.0) -> None:
        """Wait ``patience`` seconds for all processes to end, then send SIGTERM, then SIGKILL."""
        self._wait(patience)
        for process in self._alive():
            process.terminate()
        self._wait(self._stop_seconds)
        for process in self._alive():
            process.kill()
        self._wait(self._stop_seconds)

    def end_guard(self) -> None:
        """End the guard. Call it when all guarded processes have ended."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None

    def _alive(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self._processes.values() if process.poll() is None]

    def _wait(self, seconds: float) -> None:
        """Wait up to ``seconds`` for all processes to end."""
        end = time.monotonic() + seconds
        for process in self._alive():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].removeprefix("taskedge: ")
    return "it printed nothing"
