"""More never makes the optimum worse: OMP_NUM_THREADS=1 python -m benchmarks.planning.monotone_fleets

10,000 random fleets of up to 5 devices and 6 blocks, with memory, radio, wired and mixed uplinks. Each is solved, then
again with a further device (fast, slow, with next to no memory, or without a radio), and with more memory, a wider band
or more power in turn. Every solution is proved; a part is also compared with brute force over all assignments. Fleets
beyond the proof follow, whose plans have no such guarantee. About 15 minutes on one core.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from benchmarks.planning.planning_record import machine, spread
from benchmarks.record import TEST_HELPERS, write
from taskedge.planning import (
    BlockMemory,
    FixedRateLink,
    InfeasiblePlan,
    JointPlan,
    Link,
    MixedLink,
    ShannonLink,
    solve_exactly,
)

sys.path.insert(0, str(TEST_HELPERS))
from fleets import best_several

RESULTS = ("monotone_fleets.json",)

FLEETS, LARGE_FLEETS, SEED = 10_000, 40, 11
TOLERANCE = 1e-9
OTHER_CHANGES = ("memory", "band", "power")
NEW_DEVICES = ("fast", "slow", "one byte", "dead radio")
MAX_BRUTE_FORCE = 32
"""Assignments up to which an instance is also solved by brute force."""

Case = dict[str, Any]


def draw_case(rng: np.random.Generator, devices: int, blocks: int) -> Case:
    """Seconds and memory that grow with depth; a third of the fleets radio only, wired only and mixed."""
    speed = rng.lognormal(0, 0.8, devices)
    kind = rng.integers(3)
    wired = np.zeros(devices, bool) if kind == 0 else np.ones(devices, bool) if kind == 1 else rng.random(devices) < 0.5
    return {
        "compute": np.cumsum(rng.uniform(0.2, 1, blocks)) / speed[:, None],
        "alone": 1 + np.cumsum(rng.uniform(0, 0.3, blocks)) * np.ones((devices, 1)),
        "extra": np.tile(rng.uniform(0, 0.5, blocks), (devices, 1)),
        "capacity": rng.uniform(1.2, 4, devices),
        "bits": rng.uniform(0.2, 2, blocks) * 10 ** rng.uniform(4, 7),
        "snr": 10 ** rng.uniform(6, 9, devices),
        "rates": 10 ** rng.uniform(5, 8, devices),
        "wired": wired,
        "bandwidth": 10 ** rng.uniform(5.5, 7.5),
    }


def with_device(case: Case, kind: str, rng: np.random.Generator) -> Case:
    """The fleet with one more device."""
    speed = {"fast": 10.0, "slow": 0.01}.get(kind, 1.0)
    more = {
        "compute": case["compute"].min(axis=0) / speed,
        "alone": case["alone"][0],
        "extra": case["extra"][0],
        "capacity": 1e-9 if kind == "one byte" else float(rng.uniform(1.2, 4)),
        "snr": 0.0 if kind == "dead radio" else 10 ** rng.uniform(6, 9),
        "rates": 0.0 if kind == "dead radio" else 10 ** rng.uniform(5, 8),
        "wired": bool(rng.random() < 0.3),
    }
    return case | {key: np.concatenate([case[key], [value]]) for key, value in more.items()}


def improved(case: Case, what: str, rng: np.random.Generator) -> Case:
    """The fleet with more of one thing, for one device where it is a device's."""
    factor = np.ones(case["capacity"].size)
    factor[rng.integers(factor.size)] = rng.uniform(1.05, 4)
    if what == "memory":
        return case | {"capacity": case["capacity"] * factor}
    if what == "power":
        return case | {"snr": case["snr"] * factor}
    return case | {"bandwidth": case["bandwidth"] * rng.uniform(1.05, 4)}


def arguments(case: Case) -> tuple[tuple[Any, ...], BlockMemory]:
    memory = BlockMemory(case["alone"], case["extra"], case["capacity"])
    fits = memory.alone <= memory.capacity[:, None]
    wired, radio, cable = case["wired"], ShannonLink(case["snr"]), FixedRateLink(case["rates"])
    link: Link = cable if wired.all() else MixedLink(radio, cable, wired) if wired.any() else radio
    return (case["compute"], fits, case["bits"], link, case["bandwidth"]), memory


def solved(case: Case) -> JointPlan | None:
    args, memory = arguments(case)
    try:
        return solve_exactly(*args, memory=memory)
    except InfeasiblePlan:
        return None


def latency(plan: JointPlan | None) -> float:
    return np.inf if plan is None else plan.latency


def small_fleets(rng: np.random.Generator) -> dict[str, Any]:
    counts: dict[str, dict[str, int]] = {}
    proved = plans = infeasible = compared = 0
    off = []
    for number in range(FLEETS):
        case = draw_case(rng, int(rng.integers(1, 6)), int(rng.integers(1, 7)))
        before = solved(case)
        new = NEW_DEVICES[number % len(NEW_DEVICES)]
        other = OTHER_CHANGES[number % len(OTHER_CHANGES)]
        changes = {f"a device: {new}": with_device(case, new, rng), other: improved(case, other, rng)}
        infeasible += before is None
        for what, changed in changes.items():
            after = solved(changed)
            row = counts.setdefault(what, {"fleets": 0, "worse": 0, "better": 0, "became possible": 0})
            row["fleets"] += 1
            row["worse"] += latency(after) > latency(before) * (1 + TOLERANCE)
            row["better"] += latency(after) < latency(before) * (1 - TOLERANCE)
            row["became possible"] += before is None and after is not None
            plans += after is not None
            proved += after is not None and after.stopped == "optimal"
        plans += before is not None
        proved += before is not None and before.stopped == "optimal"
        devices, blocks = case["compute"].shape
        if devices**blocks <= MAX_BRUTE_FORCE and not (case["wired"].any() and not case["wired"].all()):
            args, memory = arguments(case)
            best = best_several(*args, memory)
            compared += 1
            off.append(0.0 if best == latency(before) else abs(latency(before) / best - 1))
        if number % 1000 == 999:
            print(number + 1, counts, flush=True)
    return {
        "fleets": FLEETS,
        "devices": "1 to 5, then one more",
        "blocks": "1 to 6",
        "without_a_plan_at_first": infeasible,
        "plans": plans,
        "proved_optimal": proved,
        "by_change": counts,
        "worse_by_a_further_device": sum(row["worse"] for what, row in counts.items() if what.startswith("a device")),
        "worse": sum(row["worse"] for row in counts.values()),
        "compared_with_brute_force": compared,
        "relative_difference_from_brute_force": spread(off),
    }


def large_fleets(rng: np.random.Generator) -> dict[str, Any]:
    """Fleets beyond the proof: the search has no guarantee, so this says how often and by how much it is worse."""
    ratios, gaps = [], []
    for number in range(LARGE_FLEETS):
        case = draw_case(rng, int(rng.integers(10, 31)), int(rng.integers(16, 33)))
        case["capacity"] = case["capacity"] * 4
        before, after = solved(case), solved(with_device(case, NEW_DEVICES[number % len(NEW_DEVICES)], rng))
        if before is None or after is None:
            continue
        ratios.append(after.latency / before.latency)
        gaps.append(before.gap)
    return {
        "fleets": len(ratios),
        "devices": "10 to 30",
        "blocks": "16 to 32",
        "worse_by_a_further_device": int((np.array(ratios) > 1 + TOLERANCE).sum()),
        "latency_after_over_before": spread(ratios),
        "gap": spread(gaps),
    }


def main() -> None:
    about, start = machine(), time.perf_counter()
    rng = np.random.default_rng(SEED)
    results = {"seed": SEED, "small": small_fleets(rng), "beyond_the_proof": large_fleets(rng)}
    print(results, f"{time.perf_counter() - start:.0f} s", flush=True)
    write("planning", "monotone_fleets", results, about)


if __name__ == "__main__":
    main()
