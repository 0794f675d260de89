"""How good the plans are: OMP_NUM_THREADS=1 python -m benchmarks.planning.planning_quality

Against brute force (independent code, tests/planning/fleets.py), against the exact solver and against HiGHS. Takes
about five minutes on one core.
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
    allocate_jointly,
    allocate_several,
    match_blocks,
    solve_exactly,
)

sys.path.insert(0, str(TEST_HELPERS))
from fleets import best_joint, best_matching, best_several

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


def exact_against_brute_force(cases: int = 200, seed: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    off = []
    for _ in range(cases):
        blocks = int(rng.integers(1, 5))
        case = draw(rng, int(rng.integers(blocks, 6)), blocks)
        best = best_joint(*case)
        off.append(abs(solve_exactly(*case).latency / best - 1))
    return {"cases": cases, "seed": seed, "devices": "up to 5", "blocks": "up to 4", "relative_difference": spread(off)}


def joint_against_exact(cases: int = 500, seed: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    gaps: dict[str, list[float]] = {"joint": [], "joint_without_redealing": []}
    bounds, stops, iterations, below, above = [], {}, [], 0, 0
    seconds = {"exact": 0.0, "joint": 0.0}
    for _ in range(cases):
        blocks = int(rng.integers(4, 25))
        case = draw(rng, int(rng.integers(blocks, 41)), blocks)
        start = time.perf_counter()
        best = solve_exactly(*case).latency
        middle = time.perf_counter()
        plan = allocate_jointly(*case)
        seconds["exact"] += middle - start
        seconds["joint"] += time.perf_counter() - middle
        gaps["joint"].append(plan.latency / best - 1)
        gaps["joint_without_redealing"].append(allocate_jointly(*case, reassign=False).latency / best - 1)
        bounds.append(1 - plan.lower_bound / best)
        stops[plan.stopped] = stops.get(plan.stopped, 0) + 1
        iterations.append(plan.iterations)
        below += min(g[-1] for g in gaps.values()) < -1e-9
        above += plan.lower_bound > best * (1 + 1e-9)
    return {
        "cases": cases,
        "seed": seed,
        "devices": "4 to 40",
        "blocks": "4 to 24, never more than devices",
        **{f"gap_{name}": spread(values) for name, values in gaps.items()},
        "plans_below_exact": int(below),
        "bounds_above_exact": int(above),
        "bound_distance": spread(bounds),
        "stopped": stops,
        "iterations": spread(iterations),
        "mean_seconds": {name: total / cases for name, total in seconds.items()},
        "all_gaps": {name: [round(g, 7) for g in values] for name, values in gaps.items()},
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
    """Fewer devices than blocks: HiGHS at fixed rates (2-5 devices, 5-12 blocks), brute force on the radio."""
    rng = np.random.default_rng(seed)
    gaps, proved = [], 0
    for _ in range(cases):
        devices, blocks = int(rng.integers(2, 6)), int(rng.integers(5, 13))
        compute, _, bits, _, bandwidth = draw(rng, blocks, blocks)
        compute, rates = compute[:devices], bandwidth * rng.uniform(0.2, 4, devices) / devices
        best, sure = milp(compute, bits, rates)
        plan = allocate_several(compute, np.ones(compute.shape, bool), bits, FixedRateLink(rates), bandwidth)
        gaps.append(plan.latency / best - 1)
        proved += sure
    radio = []
    for _ in range(cases):
        devices, blocks = int(rng.integers(2, 4)), int(rng.integers(3, 6))
        compute, _, bits, link, bandwidth = draw(rng, blocks, blocks)
        devices = min(devices, blocks)
        case = compute[:devices], np.ones((devices, blocks), bool), bits, ShannonLink(link.snr_hz[:devices]), bandwidth
        radio.append(allocate_several(*case).latency / best_several(*case) - 1)
    return {
        "cases": cases,
        "seed": seed,
        "gap_to_highs": spread(gaps),
        "optimal_share_highs": float(np.mean(np.array(gaps) < 1e-5)),
        "proved_by_highs": int(proved),
        "gap_to_brute_force_on_radio": spread(radio),
        "all_gaps": {"HiGHS": [round(g, 7) for g in gaps], "brute force": [round(g, 7) for g in radio]},
    }


def draw_picture(results: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "taskedge", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    curves = {name.replace("_", " "): gaps for name, gaps in results["joint_against_exact"]["all_gaps"].items()}
    curves["lower bound"] = results["joint_against_exact"]["all_bound_distances"]
    several = {f"against {name}": gaps for name, gaps in results["several"]["all_gaps"].items()}
    for axis, lines, title in ((left, curves, "joint and exact"), (right, several, "several blocks per device")):
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
        "exact_against_brute_force": exact_against_brute_force,
        "joint_against_exact": joint_against_exact,
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
