"""Processes that end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import tiny_task

from taskedge.cooperation.fleet.local_processes import LocalProcesses


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def all_end(pids):
    end = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


def test_failed_processes_are_named_with_their_last_line(tmp_path):
    processes = LocalProcesses()
    scripts = {
        "slow": "exec sleep 600",
        "quick": "exit 0",
        "faulty": "echo one; echo taskedge: two >&2; exit 3",
        "silent": "exit 4",
    }
    for name, script in scripts.items():
        processes.start(name, ["/bin/sh", "-c", script], tmp_path / name, os.environ)
    assert all_end([processes.pids()[name] for name in ("quick", "faulty", "silent")])
    assert processes.running() == ["slow"]
    assert processes.failures() == {"faulty": "two", "silent": "it printed nothing"}
    processes.stop()
    assert processes.running() == []


def test_a_process_that_ends_by_itself_within_patience_gets_no_signal(tmp_path):
    processes = LocalProcesses()
    processes.start("a", ["/bin/sh", "-c", "trap 'exit 9' TERM; sleep 0.3; exit 0"], tmp_path / "log", os.environ)
    processes.stop(patience=20)
    assert processes.failures() == {}


def test_a_process_that_ignores_sigterm_is_killed_and_then_the_guard_can_end(tmp_path):
    processes = LocalProcesses(stop_seconds=0.3)
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    processes.start("stubborn", ["/bin/sh", "-c", stubborn], tmp_path / "log", os.environ)
    while "ready" not in (tmp_path / "log").read_text():
        time.sleep(0.01)
    processes.guard()
    pids = [processes.pids()["stubborn"], processes.guard_pid]
    assert all(map(is_alive, pids))
    processes.stop()
    processes.end_guard()
    assert processes.guard_pid is None
    assert not any(map(is_alive, pids))


def test_they_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from taskedge.cooperation.fleet.local_processes import LocalProcesses\n"
        "p = LocalProcesses()\np.start('a', ['/bin/sleep', '600'], Path(sys.argv[1]), os.environ)\n"
        "p.guard()\nprint(p.pids()['a'], p.guard_pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], env=tiny_task.environment(), stdout=subprocess.PIPE
    )
    pids = list(map(int, parent.stdout.readline().split()))
    assert all(map(is_alive, pids))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert all_end(pids)
