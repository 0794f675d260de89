"""A process that works with a folder as a coordinator does."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tiny_task

HOLD = """
import signal, sys, time
from pathlib import Path
from taskedge.cooperation.fleet.coordinator_lock import hold_coordinator_lock
if sys.argv[2] == "ignores SIGTERM":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with hold_coordinator_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def start_coordinator():
    """Starts processes that hold the lock of a folder, and kills them at the end."""
    processes = []

    def start(folder, how=""):
        words = [sys.executable, "-c", HOLD, str(folder), how]
        process = subprocess.Popen(words, env=tiny_task.environment(), stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout.readline() == b"locked\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()
