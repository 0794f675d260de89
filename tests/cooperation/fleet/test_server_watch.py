"""A server that is killed under a coordinator is started again, and it is said what happened."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

pytest.importorskip("nats", reason="needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from linked_fleets import SECONDS, started

from taskedge.cooperation.fleet import server_watch
from taskedge.cooperation.fleet.server_watch import keep_server_running
from taskedge.cooperation.transport.nats.server import ServerError


class Registry:
    """A fleet whose server starts at the second attempt."""

    def __init__(self):
        self.attempts, self.pid = 0, None

    @property
    def server(self):
        return self

    def start_server(self):
        self.attempts += 1
        if self.attempts == 1:
            raise ServerError("the port is taken")
        self.pid = 7
        return self


async def watched(registry, until, monkeypatch, grace=0.02):
    monkeypatch.setattr(server_watch, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(server_watch, "GRACE_SECONDS", grace)
    events, pids = [], []
    watching = asyncio.create_task(keep_server_running(registry, events.append, pids.append))
    async with asyncio.timeout(SECONDS):
        while not until(events):
            assert not watching.done()
            await asyncio.sleep(0.01)
    watching.cancel()
    return [event["why"] for event in events], pids


def test_it_is_tried_until_the_server_runs(monkeypatch):
    registry = Registry()
    said, pids = asyncio.run(watched(registry, lambda events: len(events) == 3, monkeypatch))
    assert "has ended" in said[0]
    assert "could not be started again: the port is taken" in said[1]
    assert "was started again (process 7)" in said[2]
    assert pids == [7]


def test_a_killed_server_is_started_again(tmp_path, monkeypatch):
    registry, server = started(tmp_path / "fleet", "edge0")
    try:
        before = server.pid
        os.kill(before, signal.SIGKILL)
        _, pids = asyncio.run(watched(registry, lambda events: len(events) == 2, monkeypatch))
        assert pids == [registry.server.pid] != [before]
    finally:
        registry.server.stop()


def test_a_server_that_somebody_else_starts_is_left_alone(monkeypatch):
    registry = Registry()

    async def run():
        async def start_it():
            await asyncio.sleep(0.1)
            registry.pid = 5

        starting = asyncio.create_task(start_it())
        said, pids = await watched(registry, lambda events: registry.pid == 5, monkeypatch, grace=60)
        await starting
        return said, pids

    said, pids = asyncio.run(run())
    assert (len(said), pids, registry.attempts) == (1, [], 0)
