"""How the solvers grow with the fleet: OMP_NUM_THREADS=1 python -m benchmarks.planning.planning_scale

96 blocks on 10^4 to 10^6 devices with a device of its own for each block, and any number of blocks a device on fleets
of 6 to 10^4. Arrays are in memory before the clock starts; every figure is the least and the median of several runs.
``anticorrelated`` is the hardest fleet for pruning: every faster device has the worse radio. Needs 2 GiB.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.planning.planning_record import draw, machine
from benchmarks.record import IMAGES, write
from taskedge.planning import ShannonLink, allocate_several, match_blocks, solve_exactly, solve_one_each

RESULTS = ("planning_scale.json",)

BLOCKS = 96
SIZES = [10_000, 30_000, 100_000, 300_000, 1_000_000]
GIB = 2**20  # ru_maxrss counts in KiB


def fleet(devices: int, seed: int, anticorrelated: bool = False) -> tuple[Any, ...]:
    """Log-normal speeds (sigma 0.6), memory for 24 to 96 blocks, snr_hz log-uniform in 1e6 .. 1e9, 2 Mbit per block."""
    rng = np.random.default_rng(seed)
    speed = rng.lognormal(0, 0.6, devices)
    compute = np.empty((devices, BLOCKS))
    np.divide(0.01 * (1 + np.arange(BLOCKS)), speed[:, None], out=compute)
    fits = np.arange(BLOCKS) < rng.integers(BLOCKS // 4, BLOCKS + 8, devices)[:, None]
    snr = 10 ** rng.uniform(6, 9, devices)
    if anticorrelated:
        snr = np.sort(snr)[np.argsort(np.argsort(-speed))]
    return compute, fits, np.full(BLOCKS, 2e6), ShannonLink(snr), 20e6


def clock(run: Callable[[], Any], times: int) -> tuple[Any, dict[str, Any]]:
    walls, cpus, answer = [], [], None
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        answer = run()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return answer, {
        "least_wall_seconds": min(walls),
        "median_wall_seconds": float(np.median(walls)),
        "least_cpu_seconds": min(cpus),
        "wall_seconds": walls,
    }


def measure(devices: int, anticorrelated: bool, times: int) -> dict[str, Any]:
    case = fleet(devices, seed=devices, anticorrelated=anticorrelated)
    matching, match_time = clock(lambda: match_blocks(case[0], case[1]), times)
    plan, exact_time = clock(lambda: solve_one_each(*case), times)
    return {
        "devices": devices,
        "blocks": BLOCKS,
        "anticorrelated": anticorrelated,
        "match": {**match_time, "method": matching.method, "latency_seconds": matching.latency},
        "one-each": {**exact_time, "stopped": plan.stopped, "steps": plan.iterations, "latency_seconds": plan.latency},
        "input_gib": (case[0].nbytes + case[1].nbytes) / 2**30,
        "peak_resident_gib_so_far": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB,
    }


ANY_NUMBER = [(6, 12), (20, 12), (60, 12), (20, 24), (60, 96), (96, 96), (10_000, 96)]
"""Devices and blocks of the fleets that are planned with any number of blocks a device."""


def measure_any_number(devices: int, blocks: int, times: int = 3) -> dict[str, Any]:
    """Seconds of ``several`` and ``exact``, and how far their plans are from what is proved."""
    rng = np.random.default_rng(devices + blocks)
    case = draw(rng, max(devices, blocks), blocks)
    case = case[0][:devices], case[1][:devices], case[2], ShannonLink(case[3].snr_hz[:devices]), case[4]
    row: dict[str, Any] = {"devices": devices, "blocks": blocks}
    for name, solve in (("several", allocate_several), ("exact", solve_exactly)):
        plan, seconds = clock(lambda solve=solve: solve(*case), times)  # type: ignore[misc]
        busy = len(set(plan.device_of_block.tolist()))
        row[name] = seconds | {"stopped": plan.stopped, "gap": plan.gap, "busy_devices": busy, "seconds": plan.latency}
    return row


def growth(rows: list[dict[str, Any]], solver: str) -> dict[str, float]:
    """Seconds of the largest fleet over those of the smallest, and what K log K would be."""
    first, last = rows[0], rows[-1]
    ratio = last[solver]["least_wall_seconds"] / first[solver]["least_wall_seconds"]
    n, m = first["devices"], last["devices"]
    return {"measured": ratio, "k_log_k": float(m * np.log(m) / (n * np.log(n)))}


def draw_picture(rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "taskedge", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for solver, label, color in (("match", "match_blocks", "#457b9d"), ("one-each", "solve_one_each", "#d1495b")):
        for hard in (False, True):
            mine = [row for row in rows if row["anticorrelated"] == hard]
            seconds = [row[solver]["least_wall_seconds"] for row in mine]
            if solver == "match" and hard:
                continue  # a matching knows no radio
            name = label + (", faster devices have the worse radio" if hard else "")
            axis.plot([row["devices"] for row in mine], seconds, "--o" if hard else "-o", color=color, label=name, ms=4)
    sizes = np.array(SIZES, dtype=float)
    base = next(row for row in rows if not row["anticorrelated"])["one-each"]["least_wall_seconds"]
    reference = sizes * np.log(sizes)
    axis.plot(sizes, base * reference / reference[0], ":", color="#8d99ae", label="K log K")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="devices",
        ylabel="seconds",
        title=f"{BLOCKS} blocks, one core",
        ylim=(0.01, 2000),
    )
    axis.legend(frameon=False, loc="upper left", handlelength=3.5)
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / "planning_scale.svg", metadata={"Date": None})


def main() -> None:
    about, rows = machine(), []
    for hard in (False, True):
        for devices in SIZES:
            rows.append(measure(devices, hard, times=1 if hard else 3))
            print(rows[-1], flush=True)
    any_number = [measure_any_number(*size) for size in ANY_NUMBER]
    for row in any_number:
        print(row, flush=True)
    usual = [row for row in rows if not row["anticorrelated"]]
    results = {
        "growth": {solver: growth(usual, solver) for solver in ("match", "one-each")},
        "rows": rows,
        "any_number": any_number,
    }
    print(results["growth"])
    write("planning", "planning_scale", results, {**about, "load_at_end": os.getloadavg()[0]})
    draw_picture(rows)


if __name__ == "__main__":
    main()
