from __future__ import annotations

import numpy as np
import pytest
import torch
from depth_models import sparse, tiny

from taskedge.backbone.cost_model import block_table, dummy_inputs
from taskedge.errors import InputError
from taskedge.profiling.process_memory import machine_bytes, peak_bytes, reset_peak
from taskedge.profiling.profile_file import Profile
from taskedge.profiling.step_profile import Effort, default_depths, gemm_peak, measure_profile
from taskedge.profiling.training_steps import DepthTraining

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def profile() -> Profile:
    shape = tiny()
    table = block_table(shape, dummy_inputs(shape, 1, 16), 0.01, "tiny")
    model, inputs = sparse()
    return measure_profile(
        DepthTraining(model, "1 entries per neuron"),
        table,
        inputs,
        effort=Effort(warmup_steps=2, timed_steps=3),
        watts=5.0,
    )


@pytest.mark.slow
def test_a_profile_covers_every_depth(profile) -> None:
    assert [row.depth for row in profile.measured] == [1, 2, 4]
    assert len(profile.step_seconds) == len(profile.peak_bytes) == 4
    assert (np.diff(profile.step_seconds) >= 0).all()
    assert (np.diff(profile.peak_bytes) >= 0).all()
    assert profile.tokens_per_step == 32
    assert profile.energy.source in ("user watts", "rapl", "nvml", "jetson")
    assert profile.tokens_per_second == pytest.approx(32 / profile.step_seconds[-1])


def test_a_depth_that_the_model_does_not_have() -> None:
    model, inputs = sparse()
    table = block_table(tiny(), inputs, 0.01, "tiny")
    with pytest.raises(InputError, match="the model has 4 layers"):
        measure_profile(DepthTraining(model, "x"), table, inputs, [5])


@pytest.mark.slow
def test_processor_seconds_need_one_thread(monkeypatch) -> None:
    model, inputs = sparse()
    table = block_table(tiny(), inputs, 0.01, "tiny")
    effort = Effort(timed_steps=3, clock="cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(InputError, match="OMP_NUM_THREADS=1"):
        measure_profile(DepthTraining(model, "x"), table, inputs, effort=effort)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    model, inputs = sparse()
    assert measure_profile(DepthTraining(model, "x"), table, inputs, effort=effort).clock == "cpu"


def test_default_depths() -> None:
    assert default_depths(12) == [1, 6, 12]
    assert default_depths(2) == [1, 2]


def test_the_machine_has_speed_and_memory() -> None:
    assert gemm_peak(CPU, torch.float32) > 0
    assert machine_bytes(CPU) > 1e8


@pytest.mark.slow
def test_the_peak_is_seen_after_it_has_passed() -> None:
    reset_peak(CPU)
    before = peak_bytes(CPU)
    held = torch.ones(50_000_000)
    del held
    assert peak_bytes(CPU) - before > 150e6
