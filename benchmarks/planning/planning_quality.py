"""How good the plans are: OMP_NUM_THREADS=1 python -m benchmarks.planning.planning_quality

Against brute force (independent code, tests/helpers/fleets.py), against proved optima and against HiGHS. Takes about
ten minutes on one core.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from benchmarks.planning.planning_record import draw, machine, spread
from benchmarks.record import IMAGES, TEST_HELPERS, write
from taskedge.planning import (
    FixedRateLink,
    InfeasiblePlan,
    ShannonLink,
    allocate_several,
    ascend_dual,
    match_blocks,
    solve_exactly,
    solve_one_each,
)

sys.path.insert(0, str(TEST_HELPERS))
from fleets import best_joint, best_matching, best_several, draw_any

RESULTS = ("planning_quality.json",)


def crunch_against_brute_force(cases: int = 1000, seed: int = 1) -> dict[str, Any]:
    """Monotone cases of up to 7 devices and 5 blocks, small whole latencies (ties), pairs that do not fit."""
    rng = np.random.default_rng(seed)
    mismatches = infeasible = 0
    for _ in range(cases):
        devices, blocks = int(rng.integers(1, 8)), int(rng.integers(1, 6))
        latency = np.sort(rng.integers(0, 12, (devices, blocks)).astype(float), axis=1)
        fits = np.arange(blocks) < rng.integers(0, blocks + 3, devices)[:, None]
        try:
            found = match_blocks(latency, fits).latency
        except InfeasiblePlan:
            found, infeasible = np.inf, infeasible + 1
        mismatches += found != best_matching(latency, fits)
    return {"cases": cases, "seed": seed, "mismatches": int(mismatches), "infeasible_cases": infeasible}


def one_each_against_brute_force(cases: int = 100, seed: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    off = []
    for _ in range(cases):
        blocks = int(rng.integers(1, 5))
        case = draw(rng, int(rng.integers(blocks, 6)), blocks)
        off.append(abs(solve_one_each(*case).latency / best_joint(*case) - 1))
    return {"cases": cases, "seed": seed, "devices": "up to 5", "blocks": "up to 4", "relative_difference": spread(off)}


def exact_against_brute_force(cases: int = 100, seed: int = 5) -> dict[str, Any]:
    """All assignments of blocks to devices, several on a device and idle devices included, within memory."""
    rng = np.random.default_rng(seed)
    off: list[float] = []
    disagree = infeasible = 0
    for _ in range(cases):
        case, memory = draw_any(rng, int(rng.integers(1, 4)), int(rng.integers(1, 5)))
        best = best_several(*case, memory)
        try:
            found = solve_exactly(*case, memory=memory).latency
        except InfeasiblePlan:
            found, infeasible = np.inf, infeasible + 1
        if np.isfinite(best) and np.isfinite(found):
            off.append(abs(found / best - 1))
        else:
            disagree += found != best
    return {
        "cases": cases,
        "seed": seed,
        "devices": "up to 3",
        "blocks": "up to 4",
        "infeasible_cases": infeasible,
        "disagree_on_feasibility": int(disagree),
        "relative_difference": spread(off),
    }


def dual_ascent_against_exact(cases: int = 120, seed: int = 3) -> dict[str, Any]:
    """The ascent against the optimum of its class, one block a device, and against that of all plans."""
    rng = np.random.default_rng(seed)
    gaps, all_plans, bounds, below, above = [], [], [], 0, 0
    stops: dict[str, int] = {}
    seconds = {"one-each": 0.0, "dual-ascent": 0.0, "exact": 0.0}
    for _ in range(cases):
        blocks = int(rng.integers(4, 13))
        case = draw(rng, int(rng.integers(blocks, 41)), blocks)
        start = time.process_time()
        best = solve_one_each(*case).latency
        seconds["one-each"] += time.process_time() - start
        start = time.process_time()
        plan = ascend_dual(*case)
        seconds["dual-ascent"] += time.process_time() - start
        start = time.process_time()
        optimum = solve_exactly(*case)
        seconds["exact"] += time.process_time() - start
        assert optimum.stopped == "optimal"
        gaps.append(plan.latency / best - 1)
        all_plans.append(best / optimum.latency - 1)
        bounds.append(1 - plan.lower_bound / best)
        stops[plan.stopped] = stops.get(plan.stopped, 0) + 1
        below += plan.latency < best * (1 - 1e-9)
        above += plan.lower_bound > best * (1 + 1e-9)
    return {
        "cases": cases,
        "seed": seed,
        "devices": "4 to 40",
        "blocks": "4 to 12, never more than devices",
        "gap_dual_ascent": spread(gaps),
        "optimal_share_dual_ascent": float(np.mean(np.array(gaps) < 1e-6)),
        "gap_of_one_each_to_all_plans": spread(all_plans),
        "plans_below_one_each": int(below),
        "bounds_above_one_each": int(above),
        "bound_distance": spread(bounds),
        "stopped": stops,
        "mean_cpu_seconds": {name: total / cases for name, total in seconds.items()},
        "all_gaps": {
            "dual-ascent to one-each": [round(g, 7) for g in gaps],
            "one-each to exact": [round(g, 7) for g in all_plans],
        },
        "all_bound_distances": [round(b, 7) for b in bounds],
    }


def milp(compute: np.ndarray, bits: np.ndarray, rates: np.ndarray) -> tuple[float, bool]:
    """Several blocks per device at fixed rates, by HiGHS: the optimum and whether it was proved in 20 s."""
    from scipy.optimize import Bounds, LinearConstraint
    from scipy.optimize import milp as solve

    devices, blocks = compute.shape
    size = devices * blocks + 1  # x[k, b], then T
    rows = []
    for k in range(devices):
        for b in range(blocks):
            row = np.zeros(size)
            row[k * blocks : (k + 1) * blocks] = bits / rates[k]
            row[k * blocks + b] += compute[k, b]
            row[-1] = -1
            rows.append(row)
    once = np.zeros((blocks, size))
    for b in range(blocks):
        once[b, b : devices * blocks : blocks] = 1
    cost = np.zeros(size)
    cost[-1] = 1
    answer = solve(
        cost,
        constraints=[LinearConstraint(np.array(rows), ub=0), LinearConstraint(once, 1, 1)],
        bounds=Bounds(0, np.r_[np.ones(size - 1), np.inf]),
        integrality=np.r_[np.ones(size - 1), 0],
        options={"time_limit": 20, "mip_rel_gap": 1e-6},
    )
    return float(answer.x[-1]), answer.status == 0


def several_against_others(cases: int = 40, seed: int = 4) -> dict[str, Any]:
    """HiGHS at fixed rates (2-5 devices, 5-12 blocks); the proved optimum on the radio (3-12 devices, 8-12 blocks)."""
    rng = np.random.default_rng(seed)
    gaps, bounds, proved = [], [], 0
    for _ in range(cases):
        devices, blocks = int(rng.integers(2, 6)), int(rng.integers(5, 13))
        compute, _, bits, _, bandwidth = draw(rng, blocks, blocks)
        compute, rates = compute[:devices], bandwidth * rng.uniform(0.2, 4, devices) / devices
        best, sure = milp(compute, bits, rates)
        plan = allocate_several(compute, np.ones(compute.shape, bool), bits, FixedRateLink(rates), bandwidth)
        gaps.append(plan.latency / best - 1)
        if sure:
            bounds.append(1 - plan.lower_bound / best)
        proved += sure
    radio, radio_bounds, above = [], [], 0
    for _ in range(cases):
        devices, blocks = int(rng.integers(3, 13)), int(rng.integers(8, 13))
        compute, _, bits, link, bandwidth = draw(rng, max(devices, blocks), blocks)
        link = ShannonLink(link.snr_hz[:devices])
        case = compute[:devices], np.ones((devices, blocks), bool), bits, link, bandwidth
        plan, optimum = allocate_several(*case), solve_exactly(*case)
        assert optimum.stopped == "optimal"
        radio.append(plan.latency / optimum.latency - 1)
        radio_bounds.append(1 - plan.lower_bound / optimum.latency)
        above += plan.lower_bound > optimum.latency * (1 + 1e-9)
    return {
        "cases": cases,
        "seed": seed,
        "gap_to_highs": spread(gaps),
        "optimal_share_highs": float(np.mean(np.array(gaps) < 1e-5)),
        "proved_by_highs": int(proved),
        "bound_distance_to_highs": spread(bounds),
        "gap_to_exact_on_radio": spread(radio),
        "optimal_share_radio": float(np.mean(np.array(radio) < 1e-6)),
        "bound_distance_on_radio": spread(radio_bounds),
        "bounds_above_exact": int(above),
        "all_gaps": {"HiGHS": [round(g, 7) for g in gaps], "exact, radio": [round(g, 7) for g in radio]},
        "all_bound_distances": {
            "wired": [round(b, 7) for b in bounds],
            "radio": [round(b, 7) for b in radio_bounds],
        },
    }


def draw_picture(results: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "taskedge", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    ascent, several = results["dual_ascent_against_exact"], results["several"]
    curves = ascent["all_gaps"] | {"lower bound of dual-ascent": ascent["all_bound_distances"]}
    packed = {f"plan, against {name}": gaps for name, gaps in several["all_gaps"].items()}
    packed |= {f"lower bound, {name}": gaps for name, gaps in several["all_bound_distances"].items()}
    for axis, lines, title in ((left, curves, "one block a device"), (right, packed, "several")):
        for name, gaps in lines.items():
            percent = np.maximum(100 * np.sort(gaps), 0)
            axis.step(percent, np.arange(1, percent.size + 1) / percent.size, where="post", label=name)
        axis.set(xlabel="distance from the optimum, %", ylabel="share of cases", title=title, ylim=(0, 1.02))
        axis.legend(loc="lower right", frameon=False)
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / "planning_quality.svg", metadata={"Date": None})


def main() -> None:
    about, results = machine(), {}
    for name, run in {
        "crunch_against_brute_force": crunch_against_brute_force,
        "one_each_against_brute_force": one_each_against_brute_force,
        "exact_against_brute_force": exact_against_brute_force,
        "dual_ascent_against_exact": dual_ascent_against_exact,
        "several": several_against_others,
    }.items():
        start = time.perf_counter()
        results[name] = run()
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        print({key: value for key, value in results[name].items() if not key.startswith("all_")}, flush=True)
    write("planning", "planning_quality", results, about)
    draw_picture(results)


if __name__ == "__main__":
    main()
