"""A message that is handled right after a suspension may have arrived at its beginning."""

import asyncio

import pytest

from taskedge.cooperation.device.suspend_clock import AFTER_GAP_SECONDS, GAP_SECONDS, TICK_SECONDS, SuspendAwareClock


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run_for(time, clock, seconds):
    for _ in range(round(seconds / TICK_SECONDS)):
        time.now += TICK_SECONDS
        clock.tick()


def test_in_a_process_that_runs_it_is_now():
    time = Time()
    clock = SuspendAwareClock(time)
    run_for(time, clock, 5)
    time.now += GAP_SECONDS / 2
    assert clock.earliest_arrival() == time.now


def test_after_a_suspension_it_is_the_beginning_of_the_suspension():
    time = Time()
    clock = SuspendAwareClock(time)
    run_for(time, clock, 5)
    suspended_at = time.now
    time.now += 60
    assert clock.earliest_arrival() == suspended_at  # whether the message is handled before the ticker wakes
    run_for(time, clock, AFTER_GAP_SECONDS / 2)
    assert clock.earliest_arrival() == suspended_at  # or shortly after
    run_for(time, clock, AFTER_GAP_SECONDS)
    assert clock.earliest_arrival() == time.now


def test_run_ticks_until_cancelled():
    time = Time()
    clock = SuspendAwareClock(time)

    async def run():
        async with asyncio.timeout(0.01):
            time.now += 60
            await clock.run()

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert clock.earliest_arrival() == 100.0
