"""Optimal planning against every baseline: OMP_NUM_THREADS=1 python -m benchmarks.planning.planning_headline

RoBERTa-base from its config alone (12 layers; no weights), fleets of 20 devices drawn from the distribution stated
below, 40 Rayleigh fading rounds each, every round planned anew by every solver. About ten minutes on one core.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.planning.planning_record import machine, spread
from benchmarks.record import IMAGES, ROOT, write
from taskedge.backbone.cost_model import block_table, dummy_inputs, skeleton
from taskedge.backbone.cost_table import BlockTable
from taskedge.planning.fleet_costs import fleet_costs
from taskedge.planning.fleet_file import parse_fleet
from taskedge.planning.fleet_spec import FleetSpec
from taskedge.planning.plan import BASELINES
from taskedge.planning.simulate import simulate

RESULTS = ("planning_headline.json",)

ROUNDS, DEVICES, SEEDS = 40, 20, (0, 1, 2, 3, 4)
SOLVERS = ("exact", "one-each", "dual-ascent", *BASELINES)
CONFIG = ROOT / "examples" / "roberta-base"

DISTRIBUTION = {
    "devices": DEVICES,
    "sustained_flops_per_second": "log-uniform 0.06e12 .. 0.6e12",
    "memory_bytes": "one of 2, 3, 4, 6, 8 GB",
    "tokens_per_round": 4096,
    "batch": "16 x 128 tokens",
    "distance_metres": "uniform in a disc of 500 m, at least 10 m",
    "gain_db": "-128.1 - 37.6 log10(km), Rayleigh fading anew every round",
    "transmit_watts": 0.2,
    "noise_dbm_per_hz": -174,
    "downlink_bits_per_second": 1e9,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "0.1 % of the weights, 1 MHz": {"bandwidth_hz": 1e6, "bytes_per_value": 4.0, "whole": False},
    "0.1 % of the weights, 20 MHz": {"bandwidth_hz": 20e6, "bytes_per_value": 4.0, "whole": False},
    "whole layers in fp16, 20 MHz": {"bandwidth_hz": 20e6, "bytes_per_value": 2.0, "whole": True},
}


def draw_fleet(rng: np.random.Generator, bandwidth_hz: float, bytes_per_value: float) -> FleetSpec:
    """A fleet from ``DISTRIBUTION``."""
    kilometers = np.maximum(0.5 * np.sqrt(rng.random(DEVICES)), 0.01)
    speed = 10 ** rng.uniform(np.log10(0.06e12), np.log10(0.6e12), DEVICES)
    memory = rng.choice([2e9, 3e9, 4e9, 6e9, 8e9], DEVICES)
    rows = [
        {
            "name": f"device-{k}",
            "flops_per_second": float(speed[k]),
            "utilisation_ratio": 1.0,
            "memory_bytes": float(memory[k]),
            "tokens_per_round": 4096,
            "batch_sequences": 16,
            "transmit_watts": 0.2,
            "gain_db": float(-128.1 - 37.6 * np.log10(kilometers[k])),
        }
        for k in range(DEVICES)
    ]
    raw = {
        "server": {"downlink_bits_per_second": 1e9},
        "channel": {"bandwidth_hz": bandwidth_hz, "noise_dbm_per_hz": -174.0, "bytes_per_value": bytes_per_value},
        "device": rows,
    }
    return parse_fleet(raw, Path("drawn"))


def run(table: BlockTable, setting: dict[str, Any], seed: int) -> dict[str, list[float | None]]:
    """Latency per solver and round of one fleet."""
    rng = np.random.default_rng(seed)
    fleet = draw_fleet(rng, setting["bandwidth_hz"], setting["bytes_per_value"])
    shape = replace(table, payload_values=table.parameters) if setting["whole"] else table
    costs = fleet_costs(fleet, shape)
    return simulate(fleet, costs, "roberta-base", SOLVERS, ROUNDS, rng, seed=seed).latency_seconds


def summarize(runs: list[dict[str, list[float | None]]]) -> dict[str, Any]:
    """Per solver: mean latency, rounds without a plan, and what exact saves of the mean, over the fleets."""
    rows = {}
    for name in SOLVERS:
        pairs = [
            np.array([(a, b) for a, b in zip(one["exact"], one[name], strict=True) if a is not None and b is not None])
            for one in runs
        ]
        usable = [pair for pair in pairs if len(pair)]
        every = np.concatenate([pair[:, 1] for pair in usable]) if usable else np.array([])
        rows[name] = {
            "seconds": spread(every) if every.size else None,
            "exact_saves_of_the_mean_per_fleet": [float(1 - pair[:, 0].mean() / pair[:, 1].mean()) for pair in usable],
            "exact_saves_of_the_mean": float(np.mean([1 - p[:, 0].mean() / p[:, 1].mean() for p in usable]))
            if usable
            else None,
            "rounds_without_plan": sum(seconds is None for one in runs for seconds in one[name]),
        }
    return rows


def draw_picture(solved: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "taskedge", "font.size": 9})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(solved), figsize=(4.4 * len(solved), 3.4), layout="constrained", sharey=True)
    names = [name for name in SOLVERS if name != "exact"][::-1]
    for axis, (title, rows) in zip(axes, solved.items(), strict=True):
        for place, name in enumerate(names):
            saved = 100 * np.array(rows[name]["exact_saves_of_the_mean_per_fleet"])
            if not saved.size:
                axis.text(0, place, " no plan", va="center")
                continue
            axis.barh(place, saved.mean(), color="#3182bd" if saved.mean() >= 0 else "#fd8d3c", height=0.65)
            axis.plot(saved, np.full(saved.size, place), "|", color="black", markersize=7)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(title, fontsize=9.5, loc="left")
        axis.set_xlabel("% of round latency that exact saves")
        axis.spines[["top", "right"]].set_visible(False)
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / "planning_headline.svg", metadata={"Date": None})
    if "--png" in sys.argv:
        figure.savefig("planning_headline.png", dpi=80)


def main() -> None:
    about = machine()
    shape = skeleton(str(CONFIG))
    table = block_table(shape, dummy_inputs(shape, 1, 128), 0.001, "roberta-base")
    solved = {}
    for title, setting in SETTINGS.items():
        solved[title] = summarize([run(table, setting, seed) for seed in SEEDS])
        print(title)
        for name, row in solved[title].items():
            mean = row["seconds"]["mean"] if row["seconds"] else float("nan")
            saves = row["exact_saves_of_the_mean"]
            shown = "" if saves is None else f"exact saves {100 * saves:6.1f} %"
            print(f"  {name:10} {mean:9.3f} s  {shown}  no plan in {row['rounds_without_plan']}", flush=True)
    stated = {"distribution": DISTRIBUTION, "seeds": SEEDS, "rounds_per_fleet": ROUNDS, "settings": SETTINGS}
    write("planning", "planning_headline", {"setting": stated, "solvers": solved}, about)
    draw_picture(solved)


if __name__ == "__main__":
    main()
