"""The plan: totals and memories agree with each other, and it is JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from chips import chip, memory

from taskedge.placement.placement_plan import FORMAT, make_plan, non_volatile_base
from taskedge.placement.stored_tensors import ActivationTraffic, BaseTensor, TaskSize

BASE = [BaseTensor("w", 10_000, True, 10_000), BaseTensor("bias", 100, False, 100)]
ACTIVATIONS = ActivationTraffic(200, 500, 700)
TASKS = [TaskSize(f"t{i}", 100, 30) for i in range(4)]
DEVICE = chip(memory("sram", 4_000), memory("reram", 20_000), passes_per_hour=1000.0)


def test_totals_are_those_of_the_memories():
    plan = json.loads(json.dumps(make_plan("m", DEVICE, BASE, ACTIVATIONS, TASKS, notes=["a note."])))
    assert plan["format"] == FORMAT
    assert plan["proved_optimal"]
    totals, rows = plan["totals"], plan["memories"]
    assert totals["area_mm2"] == pytest.approx(sum(row["area_mm2"] for row in rows))
    assert totals["leakage_watts"] == pytest.approx(sum(row["leakage_watts"] for row in rows))
    cells = {"sram": (1.031, 16.919), "reram": (4.028, 53.188)}
    energy = sum(
        row["words_read_per_pass"] * cells[row["name"]][0] + row["words_written_per_pass"] * cells[row["name"]][1]
        for row in rows
    )
    assert totals["pass_joules"] == pytest.approx(energy * 1e-12)
    use = DEVICE.use
    hour = 3600 * totals["leakage_watts"] + use.passes_per_hour * totals["pass_joules"]
    assert totals["joules_per_hour"] == pytest.approx(hour + use.switches_per_hour * totals["switch_joules"])
    assert sum(row["bytes"] for row in plan["tensors"]) + (plan["buffer"] or {"bytes": 0})["bytes"] == sum(
        row["used_bytes"] for row in rows
    )
    assert "a note." in plan["assumptions"]
    assert any("neighboring level" in line for line in plan["assumptions"])


def test_the_base_goes_to_reram_and_activations_to_sram():
    plan = make_plan("m", DEVICE, BASE, ACTIVATIONS, TASKS)
    homes = {row["name"]: row["memory"] for row in plan["tensors"]}
    assert (homes["w"], homes["activations"]) == ("reram", "sram")
    assert non_volatile_base(plan, DEVICE)["w"] == "reram"
    reram = next(row for row in plan["memories"] if row["name"] == "reram")
    assert reram["lifetime_years"] is None


def test_chips_with_one_memory_say_why_they_are_impossible():
    plan = make_plan("m", DEVICE, BASE, ACTIVATIONS, TASKS)
    sram, reram = plan["compared"]
    assert not sram["possible"]
    assert "bytes do not fit into 4,000" in sram["reasons"][0]
    assert "activations: reram would wear out" in reram["reasons"][0]
    assert plan["totals"]["joules_per_hour"] < sram["joules_per_hour"]


def test_computing_hides_memory_accesses():
    slow = replace(DEVICE, use=DEVICE.use.model_copy(update={"compute_seconds_per_pass": 1.0}))
    plan = make_plan("m", slow, BASE, ACTIVATIONS, [])
    assert plan["totals"]["pass_seconds"] == 1.0
    assert plan["totals"]["memory_seconds"] < 1e-3
    assert plan["buffer"] is None
