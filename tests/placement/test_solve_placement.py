"""The solvers against exhaustive search, and what they report where nothing fits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from chips import chip, memory, random_case

from taskedge.errors import InputError, TaskEdgeError
from taskedge.placement.placement_costs import OBJECTIVES, problems, refusal
from taskedge.placement.solve_placement import NoPlacement, is_feasible, search_all, solve_milp, solve_placement
from taskedge.placement.stored_tensors import StoredTensor


def least(tensors, device, objective):
    """Compare all placements by definition, with none of the solvers' code but the costs of an option."""
    best = math.inf
    for problem in problems(tensors, device, objective):
        if not all(problem.options):
            continue
        measures = problem.fixed[None]  # [placements, measures], one tensor after the other
        used = np.zeros((1, len(device.memories)))
        for tensor, options in zip(tensors, problem.options, strict=True):
            added = np.array([option.measures for option in options]).reshape(-1, measures.shape[1])
            bits = np.array([np.eye(len(device.memories))[option.memory] * tensor.bits for option in options])
            measures = (measures[:, None] + added[None]).reshape(-1, measures.shape[1])
            used = (used[:, None] + bits.reshape(len(options), -1)[None]).reshape(-1, used.shape[1])
        fits = (used <= problem.capacities).all(1)
        for index, limit in problem.limits.items():
            fits &= measures[:, index] <= limit
        best = min(best, float((measures[fits] @ problem.weights).min(initial=math.inf)))
    return best


@pytest.mark.slow
def test_200_random_cases_have_the_optimum_of_exhaustive_search():
    rng = np.random.default_rng(5)
    impossible = buffered = 0
    for number in range(200):
        tensors, device = random_case(rng)
        objective = OBJECTIVES[number % 3]
        expected = least(tensors, device, objective)
        if expected == math.inf:
            impossible += 1
            with pytest.raises(NoPlacement):
                solve_placement(tensors, device, objective=objective, solver="milp")
            continue
        for solver in ("milp", "exhaustive"):
            found = solve_placement(tensors, device, objective=objective, solver=solver)
            assert found.objective == pytest.approx(expected, rel=1e-9, abs=1e-15), (number, solver)
            assert found.proved
            assert is_feasible(found.problem, found.chosen)
        chosen, _ = solve_milp(found.problem)
        value = float(found.problem.weights @ found.problem.measures(chosen))
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-15), number
        buffered += found.problem.buffer is not None
    assert 20 < impossible < 120
    assert buffered > 5


def test_ten_random_cases():
    rng = np.random.default_rng(8)
    for _ in range(10):
        tensors, device = random_case(rng)
        expected = least(tensors, device, "energy")
        if expected < math.inf:
            assert solve_placement(tensors, device, solver="milp").objective == pytest.approx(expected, rel=1e-9)


def test_equal_tensors_are_one_variable_and_all_get_a_home():
    tensors = [StoredTensor(f"w{index}", "base", 640, 640) for index in range(300)]
    device = chip(memory("fefet", 80 * 100), memory("sram", 80 * 300))
    found = solve_placement(tensors, device)
    assert found.solver == "milp"
    homes = [options[index].memory for options, index in zip(found.problem.options, found.chosen, strict=True)]
    assert homes.count(0) == 100
    assert found.proved


def test_a_result_that_exceeds_a_capacity_within_the_tolerance_is_refused(monkeypatch):
    """A solver in floating point may take one bit too many of 10^9: the result is checked in integers."""
    bits = 10**9
    tensors = [StoredTensor(f"w{index}", "base", bits + index, 64) for index in range(4)]
    device = chip(memory("fefet", (3 * bits) // 8), memory("sram", 8 * bits))
    problem = problems(tensors, device)[0]
    chosen, proved = solve_milp(problem)
    assert proved
    assert chosen == search_all(problem)[0] or sum(chosen) == 2
    homes = [options[index].memory for options, index in zip(problem.options, chosen, strict=True)]
    assert homes.count(0) == 2  # three of them are 3 to 6 bits more than the capacity
    assert is_feasible(problem, chosen)


def test_more_placements_than_a_float_can_count():
    tensors = [StoredTensor(f"w{index}", "base", 640 + index, 640) for index in range(700)]
    device = chip(*(memory(cell, 10**6) for cell in ("fefet", "sram", "reram")))
    found = solve_placement(tensors, device)
    assert found.placements == math.inf
    assert found.proved


def test_break_even_of_switches_in_closed_form():
    """A task's table in SRAM leaks; in ReRAM beside a buffer in SRAM a switch costs. The choice changes at s*."""
    tables = [StoredTensor(f"t{i}: entries", "task", 64_000, 64_000, share=0.25, task=f"t{i}") for i in range(4)]
    sram = memory("sram", 100_000, holds=["task", "buffer"])
    reram = memory("reram", 100_000, holds=["task"])
    passes = 3.0e9  # passes read SRAM: the table or the buffer
    leakage = {name: load.cell.leakage_watts_per_bit for name, load in (("sram", sram), ("reram", reram))}
    # all four tables in SRAM against all four in ReRAM and a buffer in SRAM; both read SRAM in a pass
    saved = 3600 * (4 * 64_000 * (leakage["sram"] - leakage["reram"]) - 64_000 * leakage["sram"])
    even = saved / (1000 * (4.028 + 16.919) * 1e-12)
    for factor, buffered in ((0.99, True), (1.01, False)):
        device = chip(sram, reram, passes_per_hour=passes, switches_per_hour=even * factor)
        found = solve_placement(tables, device)
        assert (found.problem.buffer is not None) == buffered, factor
        homes = {options[i].memory for options, i in zip(found.problem.options, found.chosen, strict=True)}
        assert homes == ({1} if buffered else {0})


def test_a_tensor_that_fits_nowhere_is_named():
    device = chip(memory("sram", 100), memory("reram", 50, holds=["base"]))
    tensors = [StoredTensor("small", "base", 80, 80), StoredTensor("embedding", "base", 808, 808)]
    with pytest.raises(
        NoPlacement, match=r"embedding \(101 bytes\) fits into no memory: sram has 100 bytes; reram"
    ) as e:
        solve_placement(tensors, device)
    assert e.value.tensor == "embedding"
    assert e.value.exit_code == 3


def test_the_tensor_that_does_not_fit_beside_the_others_is_named():
    device = chip(memory("sram", 100), memory("reram", 60))
    tensors = [StoredTensor(name, "base", 8 * size, 8) for name, size in (("a", 70), ("b", 55), ("c", 40))]
    with pytest.raises(
        NoPlacement, match=r"c \(40 bytes\) does not fit: sram has 30 bytes left, reram has 5 bytes"
    ) as e:
        solve_placement(tensors, device, solver="milp")
    assert e.value.tensor == "c"
    assert "Everything together has 165 bytes, the memories 160 bytes" in str(e.value)


def test_limits_that_cannot_be_kept_state_their_best_value():
    device = chip(memory("sram", 1000), limits={"area_mm2": 1e-6, "pass_seconds": 1.0})
    with pytest.raises(NoPlacement, match=r"area_mm2 1e-06 \(at best 0.000499189\), pass_seconds 1 \(at best") as e:
        solve_placement([StoredTensor("w", "base", 6400, 6400)], device)
    assert e.value.tensor is None


def test_unknown_names():
    device = chip(memory("sram", 100))
    with pytest.raises(InputError, match="unknown objective 'speed'"):
        solve_placement([], device, objective="speed")
    with pytest.raises(InputError, match="unknown solver 'luck'"):
        solve_placement([], device, solver="luck")


def test_a_search_without_time_reports_that_it_ended_early():
    tensors = [StoredTensor(f"w{index}", "base", 640, 640) for index in range(3)]
    device = chip(memory("sram", 1), memory("fefet", 10_000))
    assert all(refusal(tensor, device.memories[0], device) for tensor in tensors)
    problem = problems(tensors, device)[0]
    assert search_all(problem, -1.0) == ([0, 0, 0], False)
    device = chip(memory("sram", 160), memory("fefet", 80))
    assert solve_placement(tensors, device, solver="exhaustive").proved
    with pytest.raises(TaskEdgeError, match=r"no placement was found in -1 seconds: give more with --seconds"):
        solve_placement(tensors, device, solver="exhaustive", seconds=-1.0)
