"""Budgets: what an honest device sends is never too much, and a flood is noticed at once."""

import pytest

from taskedge.cooperation.transport.flood_guard import (
    BYTES_BURST,
    FRAMES_BURST,
    JOINS_BURST,
    MAX_PENALTY_SECONDS,
    FloodGuard,
    TokenBucket,
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_bucket_holds_its_burst_and_fills_up():
    clock = Clock()
    bucket = TokenBucket(3, 0.5, clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    clock.now = 2.0
    assert [bucket.take() for _ in range(2)] == [True, False]
    clock.now = 1000.0
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


def test_credit_is_beside_the_burst_and_does_not_fade():
    clock = Clock()
    bucket = TokenBucket(2, 1.0, clock)
    bucket.credit(10)
    clock.now = 100.0
    assert [bucket.take() for _ in range(13)] == [True] * 12 + [False]


def test_unused_credit_of_many_requests_does_not_add_up():
    guard = FloodGuard(Clock())
    for _ in range(1000):
        guard.expect(2, 1000)
    guard.expect(1, 10)  # a smaller one takes nothing away
    assert [guard.excess(0) for _ in range(FRAMES_BURST + 5)].index(guard.excess(0)) == FRAMES_BURST + 4
    guard = FloodGuard(Clock())
    for _ in range(1000):
        guard.expect(2, BYTES_BURST)
    assert [guard.excess(BYTES_BURST) == "" for _ in range(4)] == [True, True, True, False]


def test_reports_and_expected_answers_are_never_too_much():
    clock = Clock()
    guard = FloodGuard(clock)
    for _ in range(1000):
        guard.expect(66, 64 * 2**20)
        clock.now += 2.0
        assert guard.excess(100) == ""  # the report
        assert not any(guard.excess(2**20) for _ in range(64))


@pytest.mark.parametrize(("size", "frames", "why"), [(10, FRAMES_BURST, "frames"), (2**20, BYTES_BURST >> 20, "bytes")])
def test_a_flood_is_noticed_after_the_burst(size, frames, why):
    guard = FloodGuard(Clock())
    assert not any(guard.excess(size) for _ in range(frames))
    assert f" {why} at once" in guard.excess(size)


def test_penalties_double_and_end():
    clock = Clock()
    guard = FloodGuard(clock)
    assert not guard.is_over()
    seconds = []
    for _ in range(10):
        seconds.append(guard.punish("too much").seconds)
        assert not guard.is_over()
        clock.now = guard.penalty.until
        assert guard.is_over()
        assert guard.penalty is None
    assert seconds[:3] == [10.0, 20.0, 40.0]
    assert seconds[-1] == MAX_PENALTY_SECONDS


def test_joins_are_limited():
    guard = FloodGuard(Clock())
    assert [guard.joins.take() for _ in range(JOINS_BURST + 1)].count(True) == JOINS_BURST
