"""Processes that end with the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import tiny_task

from taskedge.cooperation.fleet import local_processes as module
from taskedge.cooperation.fleet.local_processes import Processes


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ended(pids):
    end = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_who_ended_how_is_told(tmp_path):
    processes = Processes()
    words = {"slow": "exec sleep 600", "quick": "exit 0", "faulty": "echo one; echo taskedge: two >&2; exit 3"}
    for name, script in words.items():
        processes.start(name, ["/bin/sh", "-c", script], tmp_path / name, os.environ)
    assert ended([processes._running[name].pid for name in ("quick", "faulty")])
    assert processes.running() == ["slow"]
    assert processes.failed() == {"faulty": "two"}
    processes.stop()
    assert processes.running() == []


def test_stop_ends_also_who_will_not_and_then_the_guard_can_go(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.3)
    processes = Processes()
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    processes.start("stubborn", ["/bin/sh", "-c", stubborn], tmp_path / "log", os.environ)
    while "ready" not in (tmp_path / "log").read_text():
        time.sleep(0.01)
    processes.guard()
    pids = [processes._running["stubborn"].pid, processes._guard.pid]
    assert all(map(alive, pids))
    processes.stop()
    processes.end()
    assert not any(map(alive, pids))


def test_a_killed_parent_takes_them_along(tmp_path):
    code = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from taskedge.cooperation.fleet.local_processes import Processes\n"
        "p = Processes()\np.start('a', ['/bin/sleep', '600'], Path(sys.argv[1]), os.environ)\n"
        "p.guard()\nprint(p._running['a'].pid, p._guard.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], env=tiny_task.environment(), stdout=subprocess.PIPE
    )
    pids = list(map(int, parent.stdout.readline().split()))
    assert all(map(alive, pids))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert ended(pids)
