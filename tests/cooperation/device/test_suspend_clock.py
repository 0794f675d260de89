"""A message that is handled right after a freeze may have come at its beginning."""

from taskedge.cooperation.device.suspend_clock import AFTER, GAP, TICK, Arrival


class Clock:
    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


def running(clock, arrival, seconds):
    for _ in range(round(seconds / TICK)):
        clock.time += TICK
        arrival.note()


def test_in_a_process_that_runs_it_is_now():
    clock = Clock()
    arrival = Arrival(clock)
    running(clock, arrival, 5)
    clock.time += GAP / 2
    assert arrival.earliest() == clock.time


def test_after_a_freeze_it_is_when_the_freeze_began():
    clock = Clock()
    arrival = Arrival(clock)
    running(clock, arrival, 5)
    frozen = clock.time
    clock.time += 60
    assert arrival.earliest() == frozen  # whether the message is handled before the ticker wakes
    running(clock, arrival, AFTER / 2)
    assert arrival.earliest() == frozen  # or shortly after
    running(clock, arrival, AFTER)
    assert arrival.earliest() == clock.time
