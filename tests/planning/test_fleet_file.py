from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import device, fleet, raw_fleet

from taskedge.errors import InputError
from taskedge.planning.fleet_file import load_fleet, parse_fleet
from taskedge.planning.fleet_spec import DeviceSpec

EXAMPLE = Path(__file__).parents[2] / "examples" / "fleet.toml"

BROKEN = """\
[server]
downlink_bits_per_second = -3
[channels]
bandwidth_hz = 0
[[device]]
name = "a"
flops_per_second = nan
memory_byte = 8e9
tokens_per_round = 10
gain_db = -90
distance_metres = 3
[[device]]
name = "a"
profile = "none.json"
memory_bytes = "8GB"
tokens_per_round = 100000
wired_bits_per_second = 1e6
[[device]]
name = "c"
flops_per_second = 1e9
utilisation_ratio = 30
memory_bytes = 8
tokens_per_round = 100000
wired_bits_per_second = 1e6
"""


def message(raw) -> str:
    with pytest.raises(InputError) as caught:
        parse_fleet(raw, Path("fleet.toml"))
    return str(caught.value)


def test_the_example_loads() -> None:
    loaded = load_fleet(EXAMPLE)
    assert len({spec.name for spec in loaded.device}) == len(loaded.device) >= 5


def test_every_fault_is_named_with_its_line(tmp_path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(BROKEN)
    with pytest.raises(InputError) as caught:
        load_fleet(path)
    text = str(caught.value)
    assert caught.value.exit_code == 2
    for part in (
        "15 faults",
        "server.downlink_bits_per_second (line 2)",
        "channels (line 3): unknown key; did you mean 'channel'?",
        "channel: is missing",
        "device 1 'a', flops_per_second (line 7): should be a finite number",
        "memory_byte (line 8): unknown key; did you mean 'memory_bytes'?",
        "tokens_per_round (line 9): 10 is less than one batch",
        "gain_db and distance_metres both give its link",
        "transmit_watts is missing",
        "utilisation_ratio is missing",
        "device 2 'a', name (line 13): the name 'a' is used 2 times",
        "taskedge measure --model M --out none.json",
        "(given: '8GB')",
        "utilisation_ratio (line 21): should be less than or equal to 1 (given: 30)",
        "memory_bytes (line 22): 8 bytes cannot hold",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"memory_bytes": -1.0}, "greater than 0"),
        ({"memory_bytes": float("inf")}, "finite"),
        ({"gain_db": float("nan")}, "finite"),
        ({"gain_db": 9000.0}, "less than or equal to 100"),
        ({"flops_per_second": None, "utilisation_ratio": None}, "nothing gives its speed"),
        ({"gain_db": None}, "nothing gives its link"),
        ({"batch_sequences": 2.5}, "integer"),
        ({"batch_sequences": True}, "integer"),
        ({"name": ""}, "at least 1 character"),
        ({"flops_per_second": "1e9"}, "valid number"),
        ({"tokens_per_round": 0}, "greater than 0"),
    ],
)
def test_bad_figures(changes, part) -> None:
    assert part in message(raw_fleet(device(**{"name": "x"} | changes)))


def test_no_devices_and_no_bandwidth() -> None:
    text = message(raw_fleet(channel={"bandwidth_hz": 0}))
    assert "device: List should have at least 1 item" in text
    assert "channel.bandwidth_hz: should be greater than 0" in text


def test_rows_that_are_no_tables() -> None:
    assert "device" in message({"channel": {"bandwidth_hz": 1.0}, "device": 3})
    assert "device 1" in message({"channel": {"bandwidth_hz": 1.0}, "device": ["x"]})


@pytest.mark.parametrize("content", ["[server", "a = ", "\x00"])
def test_no_toml(tmp_path, content) -> None:
    (tmp_path / "f.toml").write_text(content)
    with pytest.raises(InputError, match="is not TOML"):
        load_fleet(tmp_path / "f.toml")


def test_unreadable_files(tmp_path) -> None:
    (tmp_path / "f.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(InputError, match="not UTF-8"):
        load_fleet(tmp_path / "f.toml")
    with pytest.raises(InputError, match="No such file"):
        load_fleet(tmp_path / "none.toml")


def test_gains_and_signal_to_noise() -> None:
    radio = {"bandwidth_hz": 1e6, "noise_dbm_per_hz": -174.0, "reference_gain_db": -30.0, "path_loss_exponent": 3.0}
    loaded = fleet(
        device("given", gain_db=-90.0),
        device("far", gain_db=None, distance_metres=100.0),
        device("touching", gain_db=None, distance_metres=0.1),
        device("wired", gain_db=None, transmit_watts=None, wired_bits_per_second=1e8),
        channel=radio,
    )
    assert np.allclose(loaded.gains()[:3], [1e-9, 1e-9, 1e-3])
    assert np.isnan(loaded.gains()[3])
    assert loaded.snr_hz(loaded.gains())[0] == pytest.approx(0.1 * 1e-9 / 10 ** (-20.4))
    assert loaded.wired().tolist()[3] == 1e8


def test_a_broken_profile_is_one_fault_among_others(tmp_path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"format": "taskedge-profile-1"}))
    row = device(profile="p.json", flops_per_second=None, utilisation_ratio=None, memory_bytes=-1.0)
    with pytest.raises(InputError) as caught:
        parse_fleet(raw_fleet(row), tmp_path / "fleet.toml")
    text = str(caught.value)
    assert "is not a profile that taskedge can use" in text
    assert "memory_bytes" in text
    assert "the profile has this already" in text  # batch_sequences beside a profile


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from([*DeviceSpec.model_fields, "devise"])


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(keys, junk, max_size=6) | junk, max_size=3), junk, junk)
def test_junk_is_a_list_of_faults_and_nothing_else(devices, channel, model) -> None:
    with pytest.raises(InputError, match="fault"):
        parse_fleet({"device": devices, "channel": channel, "model": model}, Path("fleet.toml"))
