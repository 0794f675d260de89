from __future__ import annotations

import time

import pytest

from taskedge.profiling.energy import EnergyMeter


def rapl(folder, joules: float, limit: float = 1000.0):
    zone = folder / "intel-rapl:0"
    zone.mkdir(exist_ok=True)
    (zone / "energy_uj").write_text(str(int(joules * 1e6)))
    (zone / "max_energy_range_uj").write_text(str(int(limit * 1e6)))


def test_rapl_counts(tmp_path) -> None:
    rapl(tmp_path, 5.0)
    with EnergyMeter(rapl=tmp_path, rails=tmp_path) as meter:
        rapl(tmp_path, 7.5)
    assert meter.source == "rapl"
    assert meter.joules == pytest.approx(2.5)


def test_rapl_wraps(tmp_path) -> None:
    rapl(tmp_path, 999.0)
    with EnergyMeter(rapl=tmp_path, rails=tmp_path) as meter:
        rapl(tmp_path, 1.0)
    assert meter.joules == pytest.approx(2.0)


def test_jetson_rails_are_sampled(tmp_path) -> None:
    rail = tmp_path / "1-0040" / "hwmon" / "hwmon3"
    rail.mkdir(parents=True)
    (rail / "curr1_input").write_text("2000")  # mA
    (rail / "in1_input").write_text("5000")  # mV
    with EnergyMeter(rapl=tmp_path / "none", rails=tmp_path) as meter:
        time.sleep(0.02)
    assert meter.source == "jetson"
    assert meter.joules == pytest.approx(10 * meter.seconds)


def test_the_users_watts_and_nobody(tmp_path) -> None:
    with EnergyMeter(15.0, rapl=tmp_path, rails=tmp_path) as meter:
        pass
    assert meter.source in ("user watts", "nvml")
    with EnergyMeter(rapl=tmp_path, rails=tmp_path) as meter:
        pass
    assert meter.source in ("none", "nvml")
    assert meter.source == "nvml" or meter.joules is None


def test_an_unreadable_counter_is_no_counter(tmp_path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    with EnergyMeter(3.0, rapl=tmp_path, rails=tmp_path) as meter:
        pass
    assert meter.source != "rapl"
