"""The cost model follows what is observed, without the first task after an installation."""

import numpy as np
import pytest

from taskedge.cooperation.scheduling.cost_calibration import Correction, Pace
from taskedge.planning.fleet_costs import Costs


def test_predictions_follow_what_was_observed():
    pace = Pace()
    for _ in range(12):
        pace.observe("a", compute=(3.0, 1.0), transport=(0.5, 0.2))
    assert pace.of("a").compute == pytest.approx(3.0)
    assert pace.of("a").transport == pytest.approx(0.3)
    for _ in range(12):
        pace.observe("a", compute=(0.5, 1.0), transport=(0.1, 0.2))
    assert pace.of("a").compute == pytest.approx(0.5, rel=0.1)
    assert pace.of("a").transport == pytest.approx(0.0, abs=0.01)
    assert pace.of("b") == Correction()


def test_one_outlier_moves_little():
    pace = Pace()
    pace.observe("a", compute=(1.0, 1.0), transport=(0.0, 0.0))
    pace.observe("a", compute=(2.0, 1.0), transport=(0.0, 0.0))
    assert pace.of("a").compute == pytest.approx(1.3)


def test_the_first_task_after_an_installation_does_not_count():
    pace = Pace()
    pace.cold("a")
    pace.observe("a", compute=(100.0, 1.0), transport=(9.0, 0.0))
    assert pace.of("a") == Correction()
    assert not pace.known("a")
    pace.observe("a", compute=(2.0, 1.0), transport=(0.0, 0.0))
    assert pace.of("a") == Correction(2.0, 0.0, 1)
    assert pace.known("a")
    pace.cold("a")  # a new process: what was seen of the old one says nothing of its first task
    assert not pace.known("a")
    assert pace.of("a") == Correction(2.0, 0.0, 1)


def test_a_late_device_is_thought_twice_as_slow():
    pace = Pace()
    pace.late("a")
    pace.late("a")
    assert pace.of("a").compute == 4.0


def test_corrections_change_the_costs_of_their_devices_only():
    costs = Costs(
        down=np.array([0.1, 0.1]),
        compute=np.array([[1.0, 2.0], [1.0, 2.0]]),
        memory=np.ones((2, 2)),
        extra=np.ones((2, 2)),
        capacity=np.ones(2),
        bits=np.ones(2),
    )
    pace = Pace()
    pace.observe("b", compute=(4.0, 1.0), transport=(1.0, 0.5))
    found = pace.corrected(costs, ["a", "b"])
    assert found.compute.tolist() == [[1.0, 2.0], [4.0, 8.0]]
    assert found.down.tolist() == [0.1, 0.6]


def test_drift_is_relative_to_when_the_plan_was_made():
    pace = Pace()
    pace.observe("a", compute=(2.0, 1.0), transport=(0.0, 0.0))
    then = {"a": pace.of("a"), "b": pace.of("b")}
    assert pace.drifted(then, 0.25) == []
    pace.observe("a", compute=(6.0, 1.0), transport=(0.0, 0.0))
    assert pace.drifted(then, 0.25) == ["a"]
    again = Pace()
    again.load(pace.state())
    assert again.of("a") == pace.of("a")
