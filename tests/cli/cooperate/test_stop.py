"""What is said about the processes that were stopped."""

from __future__ import annotations

import pytest

from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.fleet.stop_fleet import StoppedProcesses


@pytest.mark.parametrize(
    ("stopped", "lines"),
    [
        (
            StoppedProcesses(7, 8, True),
            [
                "plant: the coordinator (process 7) has ended: its run can be continued with --resume",
                "plant: the server (process 8) has ended; devices keep trying to come back",
            ],
        ),
        (StoppedProcesses(7, None, False), ["plant: the coordinator (process 7) has ended"]),
        (StoppedProcesses(None, None, True), ["plant: no coordinator runs", "plant: no server runs"]),
    ],
)
def test_every_process_has_its_line(taskedge, here, monkeypatch, stopped, lines):
    monkeypatch.setattr("taskedge.cooperation.fleet.stop_fleet.stop_fleet", lambda *args, **kwargs: stopped)
    assert taskedge("cooperate", "stop", "--folder", "plant").out.splitlines() == lines


def test_the_only_fleet_here_is_meant(taskedge, here):
    DeviceRegistry.create(here / "plant")
    ended = taskedge("cooperate", "stop", "--keep-server")
    assert (ended.code, ended.out) == (0, "plant: no coordinator runs\n")
