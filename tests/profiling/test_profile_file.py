"""The profile file is read back, and refused with all of its faults."""

from __future__ import annotations

import json

import pytest

from taskedge.errors import InputError
from taskedge.profiling.profile_file import Energy, Machine, MeasuredDepth, Profile, read_profile


@pytest.fixture
def profile() -> Profile:
    return Profile(
        model="toy",
        model_digest="abc",
        trained="1 entries per neuron",
        batch_sequences=2,
        sequence_tokens=16,
        machine=Machine(name="m", accelerator="cpu", threads=1, memory_bytes=1e9, torch="2"),
        gemm_peak_flops_per_second=1e9,
        forward_flops_per_second=1e8,
        backward_flops_per_second=1e8,
        forward_mfu_ratio=0.1,
        backward_mfu_ratio=0.1,
        tokens_per_second=1.0,
        idle_bytes=1.0,
        measured=[MeasuredDepth(depth=1, seconds=1.0, seconds_quartiles=[1.0, 1.0], peak_bytes=5.0)],
        step_seconds=[1.0, 1.0, 1.0, 2.0],
        peak_bytes=[1.0, 1.0, 1.0, 1.0],
        energy=Energy(source="none"),
    )


def test_a_profile_is_a_file(profile, tmp_path) -> None:
    path = tmp_path / "p.json"
    path.write_text(profile.model_dump_json())
    assert read_profile(path) == profile


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"format": "taskedge-profile-9"}, "format"),
        ({"step_seconds": [-1.0, 1.0, 1.0, 1.0]}, "greater than 0"),
        ({"step_seconds": [2.0, 1.0, 1.0, 1.0]}, "must not fall with depth"),
        ({"peak_bytes": [1.0]}, "one entry per depth"),
        ({"color": 1}, "color"),
    ],
)
def test_a_tampered_profile_is_refused(profile, tmp_path, change, part) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(profile.model_dump() | change))
    with pytest.raises(InputError, match=part):
        read_profile(path)


def test_every_fault_of_a_file_is_named(profile, tmp_path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(profile.model_dump() | {"sequence_tokens": 0, "clock": "sun"}))
    with pytest.raises(InputError, match=r"clock: .*; sequence_tokens: ") as caught:
        read_profile(path)
    assert "is not a profile that taskedge can use" in str(caught.value)
    path.write_text("{")
    with pytest.raises(InputError, match="file: Invalid JSON"):
        read_profile(path)


def test_a_missing_profile_names_the_command_that_makes_it(tmp_path) -> None:
    with pytest.raises(InputError, match=r"`taskedge measure --model M --out p\.json` on the device makes it"):
        read_profile(tmp_path / "p.json")


def test_tokens_of_a_step(profile) -> None:
    assert profile.tokens_per_step == 32
