"""Costs follow observed seconds, except those of the first task after an installation."""

import numpy as np
import pytest

from taskedge.cooperation.scheduling.cost_calibration import MAX_LATE_DOUBLINGS, Correction, CostCalibration
from taskedge.planning.fleet_costs import FleetCosts


def test_corrections_follow_observed_seconds():
    calibration = CostCalibration()
    for _ in range(12):
        calibration.observe("a", compute=(3.0, 1.0), transport=(0.5, 0.2))
    assert calibration.correction("a").compute == pytest.approx(3.0)
    assert calibration.correction("a").transport == pytest.approx(0.3)
    for _ in range(12):
        calibration.observe("a", compute=(0.5, 1.0), transport=(0.1, 0.2))
    assert calibration.correction("a").compute == pytest.approx(0.5, rel=0.1)
    assert calibration.correction("a").transport == pytest.approx(0.0, abs=0.01)
    assert calibration.correction("b") == Correction()


def test_one_outlier_moves_little():
    calibration = CostCalibration()
    calibration.observe("a", compute=(1.0, 1.0), transport=(0.0, 0.0))
    calibration.observe("a", compute=(2.0, 1.0), transport=(0.0, 0.0))
    assert calibration.correction("a").compute == pytest.approx(1.3)


def test_the_first_task_after_an_installation_does_not_count():
    calibration = CostCalibration()
    calibration.mark_cold_start("a")
    calibration.observe("a", compute=(100.0, 1.0), transport=(9.0, 0.0))
    assert calibration.correction("a") == Correction()
    assert not calibration.is_known("a")
    calibration.observe("a", compute=(2.0, 1.0), transport=(0.0, 0.0))
    assert calibration.correction("a") == Correction(2.0, 0.0, 1)
    assert calibration.is_known("a")
    calibration.mark_cold_start("a")  # a new process, whose first task is unlike those of the old one
    assert not calibration.is_known("a")
    assert calibration.correction("a") == Correction(2.0, 0.0, 1)


def test_a_late_device_counts_as_twice_as_slow():
    calibration = CostCalibration()
    calibration.mark_late("a")
    calibration.mark_late("a")
    assert calibration.correction("a").compute == 4.0


@pytest.mark.parametrize("seconds", [0.0, 1e-320, 1e308, float("inf"), float("nan")])
def test_no_observation_leads_out_of_bounds(seconds):
    calibration = CostCalibration()
    for _ in range(3):
        calibration.observe("a", compute=(seconds, 1e-300), transport=(seconds, 0.0))
        assert calibration.correction("a").is_sound


def test_a_device_that_is_always_late_does_not_become_ever_slower():
    calibration = CostCalibration()
    for _ in range(2000):
        calibration.mark_late("a")
    assert calibration.correction("a").compute == 2.0**MAX_LATE_DOUBLINGS
    calibration.observe("a", compute=(1.0, 1.0), transport=(0.0, 0.0))
    calibration.mark_late("a")
    assert calibration.correction("a").compute == 2.0


@pytest.mark.parametrize("bad", [{"compute": 0.0}, {"compute": float("nan")}, {"compute": 1e300}, {"transport": -1.0}])
def test_a_saved_correction_out_of_bounds_becomes_neutral(bad):
    calibration = CostCalibration()
    sound = {"compute": 2.0, "transport": 0.5, "seen": 3}
    calibration.load_state_dict({"a": sound | bad, "b": sound})
    assert calibration.correction("a") == Correction()
    assert calibration.correction("b") == Correction(2.0, 0.5, 3)
    assert calibration.healed == ["a"]


def test_corrections_change_the_costs_of_their_devices_only():
    costs = FleetCosts(
        down=np.array([0.1, 0.1]),
        compute=np.array([[1.0, 2.0], [1.0, 2.0]]),
        memory=np.ones((2, 2)),
        extra=np.ones((2, 2)),
        capacity=np.ones(2),
        bits=np.ones(2),
    )
    calibration = CostCalibration()
    calibration.observe("b", compute=(4.0, 1.0), transport=(1.0, 0.5))
    found = calibration.corrected(costs, ["a", "b"])
    assert found.compute.tolist() == [[1.0, 2.0], [4.0, 8.0]]
    assert found.down.tolist() == [0.1, 0.6]


def test_drift_is_relative_to_when_the_plan_was_made():
    calibration = CostCalibration()
    calibration.observe("a", compute=(2.0, 1.0), transport=(0.0, 0.0))
    then = {"a": calibration.correction("a"), "b": calibration.correction("b")}
    assert calibration.drifted(then, 0.25) == []
    calibration.observe("a", compute=(6.0, 1.0), transport=(0.0, 0.0))
    assert calibration.drifted(then, 0.25) == ["a"]
    again = CostCalibration()
    again.load_state_dict(calibration.state_dict())
    assert again.correction("a") == calibration.correction("a")
