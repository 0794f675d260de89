"""How long a placement takes to solve, and what it saves: python -m benchmarks.placement.placement_scale

MiniLM-L6 and BERT-base by their shapes with 1, 10 and 50 tasks of 0.1 % of the parameters and a head of two classes,
on a chip with room and on one where the capacities of three memories bind. 200 random cases of up to 6 tensors are
compared with all placements. Area, energy and switches of T full copies, T LoRA adapters of rank 8 and T deltas follow,
in SRAM, in ReRAM, in DRAM and mixed. A model over published numbers of cells, not hardware. About three CPU minutes.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import transformers

from benchmarks.record import TEST_HELPERS, figure, show, write
from taskedge.backbone.candidates import candidates
from taskedge.backbone.shapes import Shape, known_shape
from taskedge.placement.chip_file import Chip
from taskedge.placement.model_tensors import ModelTraffic, model_traffic
from taskedge.placement.placement_costs import OBJECTIVES, home_option
from taskedge.placement.placement_plan import make_plan
from taskedge.placement.solve_placement import NoPlacement, is_feasible, solve_placement
from taskedge.placement.stored_tensors import StoredTensor, TaskSize, stored_tensors

sys.path.insert(0, str(TEST_HELPERS))
from chips import chip, memory, random_case

RESULTS = ("placement_scale.json",)

TASKS = (1, 10, 50)
REPEATS = 2
SECONDS = 2.0
"""Longest time of the solver for each memory that can hold the buffer; a row states whether its result is proved."""
RANDOM_CASES, SEED = 200, 5
MB = 10**6


def shapes() -> dict[str, Shape]:
    return {"minilm-l6": known_shape("minilm-l6"), "bert-base": Shape("bert-base", transformers.BertConfig())}


def chips(base_bytes: int) -> dict[str, Chip]:
    """A chip with room for the base in each memory but SRAM, and one where three memories must share the base."""
    roomy = chip(memory("sram", 4 * MB), memory("fefet", 2 * base_bytes), memory("reram", 2 * base_bytes),
                 memory("dram", 1000 * MB))  # fmt: skip
    tight = chip(memory("sram", 4 * MB), memory("fefet", base_bytes * 11 // 20), memory("stt", base_bytes * 3 // 10),
                 memory("reram", base_bytes * 3 // 10))  # fmt: skip
    return {"roomy": roomy, "tight": tight}


def own_parameters(name: str) -> bool:
    return name.startswith("classifier")


def measured_model(shape: Shape) -> tuple[ModelTraffic, dict[str, tuple[int, int]], int]:
    """Return the traffic of the base without its head, the shapes of its linears, and its number of parameters."""
    model = shape.skeleton()
    own = frozenset(name for name, _ in model.named_parameters() if own_parameters(name))
    traffic = model_traffic(model, 128, own)
    return traffic, {name: layer.shape for name, layer in candidates(model).items()}, sum(
        parameter.numel() for parameter in model.parameters()
    )  # fmt: skip


def scale() -> list[dict[str, Any]]:
    rows = []
    for name, shape in shapes().items():
        started = time.perf_counter()
        traffic, _, parameters = measured_model(shape)
        counting = time.perf_counter() - started
        base_bytes = sum(part.values for part in traffic.base)
        for kind, count in itertools.product(chips(base_bytes), TASKS):
            tasks = [TaskSize(f"t{index}", round(0.001 * parameters), 1000) for index in range(count)]
            device = chips(base_bytes + sum(4 * task.entries + 2 * task.parameters for task in tasks))[kind]
            tensors = stored_tensors(traffic.base, traffic.activations, tasks, device.use)
            seconds, found = [], None
            for _ in range(REPEATS if kind == "roomy" else 1):
                started = time.perf_counter()
                found = solve_placement(tensors, device, seconds=SECONDS)
                seconds.append(time.perf_counter() - started)
            assert found is not None
            rows.append(
                {
                    "model": name, "chip": kind, "tasks": count, "tensors": len(tensors),
                    "possible_placements_log10": round(
                        sum(np.log10(len(options)) for options in found.problem.options), 1
                    ),
                    "counting_seconds": round(counting, 3), "solve_seconds": [round(s, 4) for s in seconds],
                    "proved_optimal": found.proved, "feasible": is_feasible(found.problem, found.chosen),
                    "joules_per_hour": found.objective,
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def random_cases() -> dict[str, Any]:
    """The solver's optimum against that of the exhaustive search."""
    rng = np.random.default_rng(SEED)
    equal = different = impossible = 0
    largest = 0.0
    for number in range(RANDOM_CASES):
        tensors, device = random_case(rng)
        best: dict[str, float] = {}
        for solver in ("milp", "exhaustive"):
            try:
                found = solve_placement(tensors, device, objective=OBJECTIVES[number % 3], solver=solver, seconds=600.0)
            except NoPlacement:
                best[solver] = np.inf
            else:
                assert found.proved
                best[solver] = found.objective
        if best["exhaustive"] == np.inf:
            impossible += best["milp"] == np.inf
            different += best["milp"] != np.inf
            continue
        off = abs(best["milp"] / best["exhaustive"] - 1) if best["exhaustive"] else abs(best["milp"])
        largest = max(largest, off)
        equal += off < 1e-9
        different += not off < 1e-9
    return {"cases": RANDOM_CASES, "equal": equal, "both_impossible": impossible, "different": different,
            "largest_relative_difference": largest}  # fmt: skip


def methods() -> list[dict[str, Any]]:
    """Area and energy of T tasks as full copies, as LoRA and as deltas, in one memory and mixed."""
    rows = []
    traffic, linears, parameters = measured_model(known_shape("minilm-l6"))
    base_bytes = sum(part.values for part in traffic.base)
    for count in (1, 10):
        device = chip(memory("sram", 50 * count * base_bytes), memory("reram", 50 * count * base_bytes),
                      memory("dram", 50 * count * base_bytes))  # fmt: skip
        lora = sum(8 * (out + inputs) for out, inputs in linears.values())
        tasks = {
            "delta": [TaskSize(f"t{i}", round(0.001 * parameters), 1000) for i in range(count)],
            "LoRA r=8": [TaskSize(f"t{i}", 0, lora + 1000) for i in range(count)],
        }
        content = {name: stored_tensors(traffic.base, traffic.activations, sizes, device.use)
                   for name, sizes in tasks.items()}  # fmt: skip
        copy = stored_tensors(traffic.base, None, [], device.use)
        content["full copies"] = [
            replace(part, name=f"t{index}: {part.name}", share=1 / count) for index in range(count) for part in copy
        ] + stored_tensors([], traffic.activations, [], device.use)
        for name, tensors in content.items():
            rows += [in_one(name, count, tensors, device, index) for index in range(len(device.memories))]
            found = solve_placement(tensors, device, seconds=SECONDS)
            total = found.problem.measures(found.chosen)
            rows.append({"tasks": count, "method": name, "home": "mixed", **named(total, device)})
    return rows


def in_one(name: str, count: int, tensors: list[StoredTensor], device: Chip, index: int) -> dict[str, Any]:
    total = np.sum([home_option(tensor, index, device).measures for tensor in tensors], axis=0)
    total[1] += device.memories[index].standby_watts
    return {"tasks": count, "method": name, "home": device.memories[index].name, **named(total, device)}


def named(total: np.ndarray, device: Chip) -> dict[str, float]:
    area, leakage, pass_seconds, pass_joules, switch_seconds, switch_joules, _ = map(float, total)
    use = device.use
    hour = 3600 * leakage + use.passes_per_hour * pass_joules + use.switches_per_hour * switch_joules
    return {
        "area_mm2": area, "leakage_watts": leakage, "pass_seconds": pass_seconds, "pass_joules": pass_joules,
        "switch_seconds": switch_seconds, "switch_joules": switch_joules, "joules_per_hour": hour,
    }  # fmt: skip


def main() -> None:
    rows, cases, compared = scale(), random_cases(), methods()
    figures = [
        figure(f"{row['model']}, {row['tasks']} tasks, {row['chip']} chip: solving", row["solve_seconds"], unit="s")
        for row in rows
    ]
    figures.append(figure("random cases that differ from the exhaustive search", [float(cases["different"])], bar=0.0))
    show(figures)
    print(cases)
    for row in compared:
        print(row)
    traffic, _, parameters = measured_model(known_shape("minilm-l6"))
    plan = make_plan("minilm-l6", chips(sum(part.values for part in traffic.base))["roomy"], traffic.base,
                     traffic.activations, [TaskSize("t0", round(0.001 * parameters), 1000)])  # fmt: skip
    write(
        "placement",
        "placement_scale",
        {
            "setting": "MiniLM-L6 and BERT-base by shape, int8, 128 tokens; a model over published numbers of cells",
            "figures": figures,
            "scale": rows,
            "random_cases": cases,
            "methods": compared,
            "sources": plan["sources"],
            "assumptions": plan["assumptions"],
        },
    )


if __name__ == "__main__":
    main()
