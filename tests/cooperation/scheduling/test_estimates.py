"""Costs come from the fleet file, else from a device's own profile, else from assumed figures."""

import numpy as np
import pytest
import tiny_fleet
from shapes import device, fleet, profile, table

import taskedge as te
from taskedge.cooperation.protocol.device_info import DeviceInfo
from taskedge.cooperation.scheduling.estimates import (
    ASSUMED_BITS_PER_SECOND,
    ASSUMED_FLOPS,
    estimate_costs,
    merge_layers,
    text_block_table,
    with_trained_values,
)
from taskedge.cooperation.scheduling.trained_blocks import trained_blocks


def info(profile=None, memory_bytes=1e9):
    return DeviceInfo("base", (), 20, memory_bytes, profile, "", None)


def test_the_fleet_file_decides_about_the_devices_that_it_lists():
    spec = fleet(device("b", tokens_per_round=96, wired_bits_per_second=5e5, transmit_watts=None, gain_db=None))
    config = tiny_fleet.settings(accumulate=2)
    estimates = estimate_costs({"b": info(profile()), "a": info()}, spec, table(), config)
    assert estimates.names == ("a", "b")
    assert estimates.accumulate == {"a": 2, "b": 3}  # 96 tokens are 3 batches of 4 rows of 8 tokens
    assert estimates.tokens == {"a": 64.0, "b": 96.0}
    assert estimates.costs.compute[1] == pytest.approx(np.array([510, 710, 910]) * 96 / 5e5)
    assert float(estimates.link.rate(1, 0.0)) == 5e5
    assert estimates.bandwidth_hz == 1e6


def test_a_profile_of_this_model_replaces_assumed_figures():
    config = tiny_fleet.settings()
    other_model = profile(model_digest="another")
    too_short = profile(step_seconds=[1.0], peak_bytes=[5.0])
    devices = {"a": info(profile()), "b": info(other_model), "c": info(too_short), "d": info()}
    estimates = estimate_costs(devices, None, table(), config)
    assert estimates.costs.compute[0] == pytest.approx([2.0, 4.0, 6.0])  # 32 tokens are two steps of 16
    assumed = np.array([510, 710, 910]) * 32 / ASSUMED_FLOPS
    for row in (1, 2, 3):
        assert estimates.costs.compute[row] == pytest.approx(assumed)
    assert [float(estimates.link.rate(k, 0.0)) for k in range(4)] == [ASSUMED_BITS_PER_SECOND] * 4


@pytest.mark.parametrize(("upload", "bits"), [("float32", 32), ("bfloat16", 16), ("float8", 8)])
def test_uploads_are_in_the_dtype_of_answers(upload, bits):
    estimates = estimate_costs({"a": info()}, None, table(), tiny_fleet.settings(upload=upload))
    assert estimates.costs.bits.tolist() == [50 * bits] * 3


def test_layers_are_merged_as_configured():
    assert len(merge_layers(table(6), tiny_fleet.settings())) == 6
    merged = merge_layers(table(6), tiny_fleet.settings(blocks=3))
    assert [len(names) for names in merged.layers] == [2, 2, 2]
    assert len(text_block_table(tiny_fleet.model(layers=4), 8, tiny_fleet.settings(blocks=2))) == 2


def test_the_payload_is_the_number_of_trained_values_of_each_block():
    model = tiny_fleet.model(layers=3)
    te.install(model, te.select(model, rule="magnitude", per_neuron=1))
    blocks = trained_blocks(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    counted = with_trained_values(table(3), blocks, sizes)
    assert counted.payload_values.tolist() == [sum(sizes[name] for name in blocks.names[b]) for b in (1, 2, 3)]
