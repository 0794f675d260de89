"""Where planning pays, over bandwidth and payload: OMP_NUM_THREADS=1 python -m benchmarks.planning.planning_gains

RoBERTa-base from its config alone (12 layers; no weights). Two kinds of fleets of 12 devices, at mean gains: alike (one
speed, one distance) and mixed (speeds within a factor of 10, distances up to 500 m). For each bandwidth and payload of
a round, the share of the round that the optimal plan saves against four baselines. With ``--picture`` the picture is
drawn again from the committed JSON. About ten minutes on one core.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.planning.planning_record import machine
from benchmarks.record import IMAGES, ROOT, results, write
from taskedge.backbone.cost_model import block_table, dummy_inputs, skeleton
from taskedge.backbone.cost_table import BlockTable
from taskedge.planning.fleet_costs import fleet_costs
from taskedge.planning.fleet_file import parse_fleet
from taskedge.planning.fleet_spec import FleetSpec
from taskedge.planning.plan import fleet_link, solve, try_solver

RESULTS = ("planning_gains.json",)

DEVICES, SEEDS = 12, (0, 1, 2)
BANDWIDTHS = [float(f"{hertz:.3g}") for hertz in np.geomspace(1e5, 1e8, 7)]
PAYLOADS = [float(f"{size:.3g}") for size in np.geomspace(1e5, 3e8, 8)]
"""Bytes of all blocks together: 0.1 % of the weights in fp32 are 0.4 MB, all layers in fp16 170 MB."""
BASELINES = {
    "random": "random placement, best split",
    "equal": "best placement, equal split",
    "one-each": "one block a device, optimal",
    "one-device": "fastest device alone",
}
CONFIG = ROOT / "examples" / "roberta-base"

DISTRIBUTION = {
    "devices": DEVICES,
    "sustained_flops_per_second": "alike: 0.2e12; mixed: log-uniform 0.06e12 .. 0.6e12",
    "memory_bytes": 8e9,
    "tokens_per_round": 4096,
    "batch": "16 x 128 tokens",
    "distance_metres": "alike: 300; mixed: uniform in a disc of 500 m, at least 10 m",
    "gain_db": "-128.1 - 37.6 log10(km), no fading",
    "transmit_watts": 0.2,
    "noise_dbm_per_hz": -174,
    "downlink_bits_per_second": 1e9,
}


def draw_fleet(kind: str, seed: int, bandwidth_hz: float) -> FleetSpec:
    """A fleet from ``DISTRIBUTION``; the same for all bandwidths."""
    rng = np.random.default_rng(seed)
    speed = 10 ** rng.uniform(np.log10(0.06e12), np.log10(0.6e12), DEVICES)
    kilometers = np.maximum(0.5 * np.sqrt(rng.random(DEVICES)), 0.01)
    if kind == "alike":
        speed, kilometers = np.full(DEVICES, 0.2e12), np.full(DEVICES, 0.3)
    rows = [
        {
            "name": f"device-{k}",
            "flops_per_second": float(speed[k]),
            "utilisation_ratio": 1.0,
            "memory_bytes": 8e9,
            "tokens_per_round": 4096,
            "batch_sequences": 16,
            "transmit_watts": 0.2,
            "gain_db": float(-128.1 - 37.6 * np.log10(kilometers[k])),
        }
        for k in range(DEVICES)
    ]
    raw = {
        "server": {"downlink_bits_per_second": 1e9},
        "channel": {"bandwidth_hz": bandwidth_hz, "noise_dbm_per_hz": -174.0, "bytes_per_value": 4.0},
        "device": rows,
    }
    return parse_fleet(raw, Path("drawn"))


def measure(table: BlockTable, kind: str, bandwidth: float, payload: float) -> dict[str, Any]:
    """Seconds of the optimal plan, its busy devices, and the share that it saves, mean over the fleets."""
    values = np.full(len(table), payload / len(table) / 4.0)
    rows = []
    for seed in SEEDS[:1] if kind == "alike" else SEEDS:
        fleet = draw_fleet(kind, seed, bandwidth)
        costs, link = fleet_costs(fleet, replace(table, payload_values=values)), fleet_link(fleet)
        best = solve("exact", costs, link, bandwidth)
        others = {}
        for name in BASELINES:
            draws = [
                try_solver(name, costs, link, bandwidth, seed=draw) for draw in range(5 if name == "random" else 1)
            ]
            others[name] = float(np.mean([plan.latency if plan else np.nan for plan in draws]))
        rows.append((best, others))
    return {
        "fleet": kind,
        "bandwidth_hz": bandwidth,
        "payload_bytes": payload,
        "seconds": float(np.mean([best.latency for best, _ in rows])),
        "busy_devices": float(np.mean([len(set(best.device_of_block.tolist())) for best, _ in rows])),
        "proved": sum(best.stopped == "optimal" for best, _ in rows),
        "fleets": len(rows),
        "saved": {
            name: float(np.mean([1 - best.latency / others[name] for best, others in rows])) for name in BASELINES
        },
    }


def draw_picture(rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "taskedge", "font.size": 9})
    import matplotlib.pyplot as plt

    kinds = {"alike": "12 devices alike", "mixed": "12 mixed devices"}
    figure, axes = plt.subplots(2, len(BASELINES), figsize=(11.5, 5.4), layout="constrained", sharex=True, sharey=True)
    picture = None
    for line, (kind, title) in zip(axes, kinds.items(), strict=True):
        for axis, (name, text) in zip(line, BASELINES.items(), strict=True):
            found = {
                (r["payload_bytes"], r["bandwidth_hz"]): 100 * r["saved"][name] for r in rows if r["fleet"] == kind
            }
            saved = np.array([[found[payload, hertz] for hertz in BANDWIDTHS] for payload in PAYLOADS])
            picture = axis.imshow(saved, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=100)
            for (y, x), value in np.ndenumerate(saved):
                color = "black" if value > 60 else "white"
                axis.text(x, y, f"{max(value, 0):.0f}", ha="center", va="center", color=color, fontsize=7)
            if kind == "alike":
                axis.set_title(f"{name}:\n{text}", fontsize=9)
            axis.set_xticks(range(len(BANDWIDTHS)), [f"{hertz / 1e6:.3g}" for hertz in BANDWIDTHS])
            axis.set_yticks(range(len(PAYLOADS)), [f"{size / 1e6:.3g}" for size in PAYLOADS])
        line[0].set_ylabel(f"{title}\nMB sent per round, all blocks")
    for axis in axes[-1]:
        axis.set_xlabel("MHz, all uplinks together")
    figure.colorbar(picture, ax=axes, label="% of the baseline's round that the optimal plan saves", shrink=0.85)
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / "planning_gains.svg", metadata={"Date": None})
    if "--png" in sys.argv:
        figure.savefig("planning_gains.png", dpi=80)


def main() -> None:
    if "--picture" in sys.argv:
        saved = json.loads((results("planning") / "planning_gains.json").read_text())["details"]["rows"]
        draw_picture(saved)
        return
    about = machine()
    shape = skeleton(str(CONFIG))
    table = block_table(shape, dummy_inputs(shape, 1, 128), 0.001, "roberta-base")
    rows = []
    for kind in ("alike", "mixed"):
        for payload in PAYLOADS:
            rows += [measure(table, kind, bandwidth, payload) for bandwidth in BANDWIDTHS]
            print(kind, payload, [round(100 * row["saved"]["equal"]) for row in rows[-len(BANDWIDTHS) :]], flush=True)
    stated = {"distribution": DISTRIBUTION, "seeds": SEEDS, "baselines": BASELINES}
    write("planning", "planning_gains", {"setting": stated, "rows": rows}, about)
    draw_picture(rows)


if __name__ == "__main__":
    main()
