"""Bytes of tensors that are alive, counted exactly."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.profiling.tensor_memory import LiveBytes, storage_bytes


def test_what_is_made_is_alive_until_it_is_freed():
    with LiveBytes() as live:
        one = torch.ones(10)
        two = one + one
        assert (live.live, live.peak, live.allocated) == (80, 80, 80)
        del one
        assert live.live == 40
        three = two[2:].reshape(2, 4)  # a view
        del two
        assert live.live == 40
        del three
    assert (live.live, live.peak, live.allocated) == (0, 80, 80)


def test_what_was_there_before_is_not_counted():
    old = torch.ones(10)
    with LiveBytes() as live:
        old.add_(1)
        view = old.view(2, 5).t()
        assert live.live == 0
        del old, view
    assert live.live == live.peak == 0


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=12))
def test_the_peak_is_that_of_a_plain_count(makings):
    held, now, peak = [], 0, 0
    with LiveBytes() as live:
        for size, frees in makings:
            held.append(torch.zeros(size))
            now += 4 * size
            peak = max(peak, now)
            if frees:
                now -= 4 * len(held.pop(0))
    assert (live.live, live.peak) == (now, peak)


def test_a_step_is_counted_as_the_profiler_counts_it():
    """Of torch: every allocation and every free of its allocator, in order."""
    from torch.profiler import ProfilerActivity, profile

    model, batch = tiny.bert(dropout=0.1).train(), tiny.batch(tiny.bert(), rows=8, tokens=20)

    def step():
        tiny.loss(model, batch).backward()
        model.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    with LiveBytes() as live:
        step()
    assert live.live == 0
    assert live.peak == pytest.approx(most, rel=0.03)  # it sees scratch memory within operations, too, and rounds up


def test_storages_are_counted_once():
    tensor = torch.zeros(6, dtype=torch.float64)
    assert storage_bytes([tensor, tensor[1:], torch.zeros(2)]) == 48 + 8
