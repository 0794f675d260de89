"""Speeds of matrix products: what pays is decided by the times; no timing decides a test."""

from __future__ import annotations

import pytest
import torch

from taskedge.profiling import arithmetic_speed
from taskedge.profiling.arithmetic_speed import GemmSpeeds, measure_gemm, threads_that_pay


def test_both_are_measured():
    speeds = measure_gemm(1)
    assert min(speeds.fp32, speeds.bf16) > 0
    assert "GFLOP/s" in str(speeds)


def test_an_emulated_bf16_is_measured_on_a_small_product(monkeypatch):
    """A product of full size took 0.8 s, ten of them in every run of tune."""
    asked = []

    def seconds(size, dtype, _):
        asked.append((size, dtype))
        return size**3 * (3e-12 if dtype == torch.float32 else slowness * 3e-12)

    monkeypatch.setattr(arithmetic_speed, "_best_seconds", seconds)
    for slowness, times in ((296.0, 0), (0.4, 1), (2.0, 1)):
        asked.clear()
        speeds = measure_gemm()
        assert speeds.fp32 / speeds.bf16 == pytest.approx(slowness)
        assert asked.count((512, torch.bfloat16)) == times
    assert str(GemmSpeeds(95e9, 0.32e9)) == "fp32 95 GFLOP/s, bf16 0.32 GFLOP/s"


@pytest.mark.parametrize(("bf16", "pays"), [(192e9, True), (70e9, False), (30e9, False)])
def test_bf16_pays_where_it_saves_a_fifth(bf16, pays):
    assert GemmSpeeds(69e9, bf16).bf16_pays == pays


@pytest.mark.parametrize(("seconds", "chosen"), [({4: 19.0, 1: 0.4}, 1), ({4: 0.2, 1: 0.4}, 4), ({4: 0.4, 1: 0.4}, 4)])
def test_threads_are_never_slower_than_one(seconds, chosen):
    assert threads_that_pay(4, seconds.__getitem__) == chosen


def test_one_thread_is_not_measured_and_the_number_is_restored():
    assert threads_that_pay(1, lambda _: 1 / 0) == 1
    before = torch.get_num_threads()
    threads_that_pay(2)
    assert torch.get_num_threads() == before
