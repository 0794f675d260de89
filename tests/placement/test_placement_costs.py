"""Costs of homes: linear in reads, additive, with the published arithmetic of one case in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from chips import chip, memory

from taskedge.placement.placement_costs import (
    MEASURES,
    buffer_bits,
    buffered_option,
    home_option,
    lifetime_years,
    problems,
    refusal,
    words,
    writes_per_hour,
)
from taskedge.placement.stored_tensors import StoredTensor

WEIGHT = StoredTensor("w", "base", 6400, 6400)
TASK = StoredTensor("t: entries", "task", 640, 640, share=0.5, task="t")


def measured(option):
    return dict(zip(MEASURES, option.measures, strict=True))


@pytest.mark.parametrize("cell", ["sram", "reram", "fefet", "pcm", "stt", "dram", "flash"])
def test_energy_and_time_are_linear_in_reads(cell):
    device = chip(memory(cell, 10_000, ports=2))
    once = measured(home_option(WEIGHT, 0, device))
    for times in (0, 2, 7):
        many = measured(home_option(replace(WEIGHT, read_bits=times * WEIGHT.bits), 0, device))
        assert many["pass_joules"] == pytest.approx(times * once["pass_joules"], rel=1e-12)
        assert many["pass_seconds"] == pytest.approx(times * once["pass_seconds"], rel=1e-12)
        assert (many["area_mm2"], many["leakage_watts"]) == (once["area_mm2"], once["leakage_watts"])
    cell_numbers = device.memories[0].cell
    assert once["pass_joules"] == pytest.approx(100 * cell_numbers.read_pj * 1e-12, rel=1e-12)
    assert once["pass_seconds"] == pytest.approx(100 * cell_numbers.read_ns * 1e-9 / 2, rel=1e-12)


def test_measures_of_a_placement_are_sums():
    device = chip(memory("sram", 10_000), memory("reram", 10_000))
    problem = problems([WEIGHT, TASK], device)[1]
    assert problem.buffer == 0
    for chosen in ([0, 0], [1, 3]):
        total = problem.fixed + sum(options[i].measures for options, i in zip(problem.options, chosen, strict=True))
        assert np.array_equal(problem.measures(chosen), total)


def test_a_switch_reads_the_home_and_writes_the_buffer():
    device = chip(memory("sram", 10_000), memory("reram", 10_000))
    option = measured(buffered_option(TASK, 1, 0, device))
    assert option["switch_joules"] == pytest.approx(0.5 * 10 * (4.028 + 16.919) * 1e-12)
    assert option["switch_seconds"] == pytest.approx(0.5 * 10 * (0.774891 + 4.329) * 1e-9)
    assert option["pass_joules"] == pytest.approx(0.5 * 10 * 1.031 * 1e-12)
    assert option["leakage_watts"] == pytest.approx(640 * 3.432e-3 / 2**23)


def test_the_base_of_minilm_in_reram_and_sram():
    """22.7 MB in int8: reads cost 8.5 uJ more in ReRAM, leakage 536 mW (of 2^20 bytes) less; 14.2 against 5.3 mm2."""
    base = StoredTensor("minilm", "base", 8 * 22_700_000, 8 * 22_700_000)
    device = chip(memory("sram", 23_000_000), memory("reram", 23_000_000))
    sram, reram = (measured(home_option(base, index, device)) for index in range(2))
    assert reram["pass_joules"] - sram["pass_joules"] == pytest.approx(8.5e-6, rel=0.01)
    assert sram["leakage_watts"] - reram["leakage_watts"] == pytest.approx(0.536, rel=0.01)
    assert (sram["area_mm2"], reram["area_mm2"]) == pytest.approx((14.16, 5.34), rel=0.01)


def test_wear_excludes_a_memory():
    device = chip(memory("reram", 10_000), memory("stt", 10_000), memory("sram", 10_000), passes_per_hour=3600.0)
    written = StoredTensor("activations", "activations", 640, 6400, 6400)
    assert writes_per_hour(written, device.use) == pytest.approx(36_000)
    assert lifetime_years(36_000, device.memories[0]) == pytest.approx(1e4 / 36_000 / 8766)
    assert "reram would wear out after 3.17e-05 years" in refusal(written, device.memories[0], device)
    assert "stt would wear out" in refusal(written, device.memories[1], device)
    assert refusal(written, device.memories[2], device) is None
    seldom = replace(device, use=device.use.model_copy(update={"passes_per_hour": 1e-6}))
    assert refusal(written, device.memories[0], seldom) is None


def test_only_content_that_a_memory_holds():
    device = chip(memory("sram", 10_000, holds=["task", "buffer"]))
    assert refusal(WEIGHT, device.memories[0], device) == "sram does not hold base"
    assert refusal(replace(WEIGHT, kind="task", bits=800_000), device.memories[0], device) == "sram has 10,000 bytes"


def test_words_and_the_buffer():
    assert [words(bits, memory("sram", 1)) for bits in (0, 1, 64, 65)] == [0, 1, 1, 2]
    others = [replace(TASK, name="t: head", bits=100), replace(TASK, task="u", bits=700), WEIGHT]
    assert buffer_bits([TASK, *others]) == 740
    assert buffer_bits([WEIGHT]) == 0
    assert [problem.buffer for problem in problems([WEIGHT], chip(memory("sram", 10_000)))] == [None]


def test_the_standby_of_a_chip_is_paid_once_and_only_if_it_is_used():
    """DDR4: 1.2 V of 50 mA and 2.5 V of 3 mA, and a refresh of 480.9 mW for 360 of every 7800 ns, for each GiB."""
    watts = 1.2 * 0.050 + 2.5 * 0.003 + (1.2 * 0.307 + 2.5 * 0.045) * 360 / 7800
    device = chip(memory("sram", 10_000), memory("dram", 2**30 + 1), memory("flash", 10_000))
    assert device.memories[1].standby_watts == pytest.approx(2 * watts, rel=1e-3)
    variants = problems([WEIGHT], device)
    assert [sorted(variant.powered) for variant in variants] == [[], [1], [2], [1, 2]]
    fixed = [variant.fixed[MEASURES.index("leakage_watts")] for variant in variants]
    assert fixed == pytest.approx([0, 2 * watts, 3e-5, 2 * watts + 3e-5], rel=1e-3)
    assert [{option.memory for option in variant.options[0]} for variant in variants] == [
        {0},
        {0, 1},
        {0, 2},
        {0, 1, 2},
    ]
