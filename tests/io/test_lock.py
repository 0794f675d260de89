"""One process at a time holds the lock on an output; the kernel ends it with the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import tiny_task

from taskedge.io.atomic import WriteError
from taskedge.io.lock import InUse, hold_lock, lock_path

HOLD = "import sys; from pathlib import Path; from taskedge.io.lock import hold_lock\n"
HOLD += "with hold_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock on ``out``."""
    call = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(call, env=tiny_task.environment(), **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_the_lock_of_another_process(tmp_path, holder):
    message = rf"out is in use by process {holder.pid} \(started \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    for _ in range(2):  # a refusal leaves the lock
        with pytest.raises(InUse, match=message), hold_lock(tmp_path / "out"):
            pass
    with hold_lock(tmp_path / "other"):
        pass
    holder.communicate(b"")
    assert list(tmp_path.iterdir()) == []
    with hold_lock(tmp_path / "out") as was_killed:
        assert not was_killed


def test_a_kill_ends_the_lock(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with hold_lock(tmp_path / "out") as was_killed:
        assert was_killed
        assert lock_path(tmp_path / "out").read_text().startswith(f"{os.getpid()} ")
    assert list(tmp_path.iterdir()) == []


def test_a_second_holder_in_the_same_process(tmp_path):
    with hold_lock(tmp_path / "out"), pytest.raises(InUse, match=f"process {os.getpid()}"):  # noqa: SIM117
        with hold_lock(tmp_path / "out"):
            pass
    with pytest.raises(ZeroDivisionError), hold_lock(tmp_path / "out"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_a_removed_lock_file_gives_no_second_lock(tmp_path, monkeypatch):
    """A process that opened the file before its holder removed it locks the new file instead."""
    from taskedge.io import lock

    flock, name = lock.fcntl.flock, lock_path(tmp_path / "out")

    def removed_in_the_meantime(file, how):
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        name.unlink()
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", removed_in_the_meantime)
    with hold_lock(tmp_path / "out"):
        assert name.exists()
        with pytest.raises(InUse), hold_lock(tmp_path / "out"):
            pass


def test_a_folder_that_cannot_hold_a_lock(tmp_path, monkeypatch):
    from taskedge.io import lock

    with pytest.raises(WriteError, match="there is no folder"), hold_lock(tmp_path / "nowhere" / "out"):
        pass

    def refuse(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.raises(WriteError, match="cannot lock files: Function not implemented"), hold_lock(tmp_path / "out"):
        pass
