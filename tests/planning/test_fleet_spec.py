"""Figures that follow from a fleet's data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError
from shapes import device, fleet

from taskedge.planning.fleet_spec import DeviceSpec, FleetSpec


def test_sustained_flops_are_a_share_of_the_peak() -> None:
    assert DeviceSpec(**device(flops_per_second=2e9, utilisation_ratio=0.25)).flops == 5e8


def test_nearer_than_a_meter_has_the_gain_of_a_meter() -> None:
    near = fleet(*(device(str(m), gain_db=None, distance_metres=m) for m in (0.01, 1.0, 10.0))).gains()
    assert near[0] == near[1] == pytest.approx(1e-3)
    assert near[2] == pytest.approx(1e-6)  # exponent 3


def test_wired_devices_have_no_gain_and_radio_devices_no_rate() -> None:
    both = fleet(device("radio"), device("wired", gain_db=None, transmit_watts=None, wired_bits_per_second=1e6))
    assert math.isnan(both.gains()[1])
    assert np.isnan(both.wired()).tolist() == [True, False]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "-rf", "a b", "a\n", "é", "x" * 64, "..", "a\\b"])
def test_a_name_that_could_lead_out_of_a_folder_is_refused(name) -> None:
    with pytest.raises(ValidationError):
        DeviceSpec(**device(name=name))


@pytest.mark.parametrize("name", ["edge-0", "0.01", "pi4.lan", "A_b", "x" * 63])
def test_a_name_has_letters_digits_dots_and_dashes(name) -> None:
    assert DeviceSpec(**device(name=name)).name == name


def test_records_are_strict() -> None:
    with pytest.raises(ValidationError):
        FleetSpec.model_validate({"channel": {"bandwidth_hz": 1.0}, "device": []})
    with pytest.raises(ValidationError):
        DeviceSpec(**device(memory_bytes="8e9"))
