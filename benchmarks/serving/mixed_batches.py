"""What mixed batches cost: rows of 1, 8 and 64 tasks in one batch, against the usual ways to serve several tasks.

    python -m benchmarks.serving.mixed_batches  # five CPU-minutes

All methods compute the same batch in turn, round after round, in CPU seconds on one thread. The three methods of the
two ratios are neighbors in a round and have more rounds; a ratio is of one round. Every second round goes backwards.

* one task applied in place: what a server of a single task costs;
* mixed batches: the base's weights, each row's own entries beside the product;
* switching: rows sorted by task, each task applied and reverted in turn;
* PEFT: LoRA adapters of rank 8 on the same linears, ``adapter_names`` for each row;
* a copy of the model for each task.
"""

from __future__ import annotations

import copy
import gc
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import psutil
import torch
from torch import nn

import taskedge as te
from benchmarks.cost.delta_cost import apply_and_revert, make_delta
from benchmarks.cost.workload import LINEARS, Batch, setup
from benchmarks.record import figure, show, write
from taskedge.demo import assets
from taskedge.serving.engine import Engine, Work
from taskedge.serving.served_base import ServedBase
from taskedge.serving.served_task import ServedTask, logits_of
from taskedge.serving.task_files import ServedTasks

RESULTS = ("mixed_batches.json",)

ROWS, TOKENS = 64, 32
COUNTS = (1, 8, 64)
ROUNDS = 12
ROUNDS_OF_RATIOS = 24
SWITCHES = 200
MANY = 1000
REQUESTS = 150
OF_APPLIED, OF_PEFT, OF_FILE, MILLISECONDS = 0.8, 1.5, 3.0, 4.0


def deltas(model: nn.Module, calibration: list[Batch], count: int) -> list[te.Delta]:
    """Deltas of one support with values of their own."""
    first = make_delta(model, calibration)
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        linears = {
            name: replace(linear, values=linear.values + 0.01 * torch.randn(len(linear), generator=generator))
            for name, linear in first.linears.items()
        }
        made.append(te.Delta(linears, first.full_parameters, first.provenance))
    return made


@torch.no_grad()
def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def part_of(batch: Batch, rows: list[int]) -> Batch:
    return {key: value[rows] for key, value in batch.items()}


def by_task(names: list[int]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return rows


def with_adapters(model: nn.Module, count: int) -> nn.Module:
    config = peft.LoraConfig(r=8, target_modules=LINEARS, init_lora_weights=False)
    with warnings.catch_warnings(action="ignore"):
        adapted = peft.get_peft_model(copy.deepcopy(model), config, adapter_name="t0")
        for index in range(1, count):
            adapted.add_adapter(f"t{index}", config)
    return adapted.eval()


def compare(model: nn.Module, tasks: list[ServedTask], made: list[te.Delta], batch: Batch) -> dict[str, list[float]]:
    """CPU seconds of a batch by method, one for each round."""
    view = tasks[0].view
    draw = torch.Generator().manual_seed(1)
    names = {count: torch.randint(count, (ROWS,), generator=draw).tolist() for count in COUNTS}
    names[64] = torch.randperm(64, generator=draw).tolist()
    plain = copy.deepcopy(model).eval()
    one = te.apply(copy.deepcopy(model), made[0]).eval()
    adapted = with_adapters(model, max(COUNTS))
    copies = [te.apply(copy.deepcopy(model), delta).eval() for delta in made[:8]]

    def mixed(count: int) -> Callable[[], object]:
        return lambda: logits_of(view, batch, [tasks[name].table for name in names[count]])

    def switching(count: int) -> Callable[[], None]:
        def run() -> None:
            for name, rows in by_task(names[count]).items():
                with te.applied(plain, made[name]):
                    plain(**part_of(batch, rows))

        return run

    def copied() -> None:
        for name, rows in by_task(names[8]).items():
            copies[name](**part_of(batch, rows))

    def adapters(count: int) -> Callable[[], object]:
        return lambda: adapted(**batch, adapter_names=[f"t{name}" for name in names[count]])

    of_ratios: dict[str, Callable[[], object]] = {
        "one task applied": lambda: one(**batch),
        "mixed, 64 tasks": mixed(64),
        "PEFT LoRA r=8, 64 tasks": adapters(64),
    }
    others: dict[str, Callable[[], object]] = {f"mixed, {count} tasks": mixed(count) for count in COUNTS[:-1]}
    others |= {f"switching, {count} tasks": switching(count) for count in COUNTS[1:]}
    others |= {f"PEFT LoRA r=8, {count} tasks": adapters(count) for count in COUNTS[:-1]}
    others["a copy a task, 8 tasks"] = copied
    seconds = in_turn(of_ratios, ROUNDS_OF_RATIOS) | in_turn(others, ROUNDS)
    order = ["one task applied", *(f"mixed, {count} tasks" for count in COUNTS)]
    return {name: seconds[name] for name in [*order, *(name for name in seconds if name not in order)]}


def in_turn(methods: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds by method, one for each round; the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for index in range(rounds + 1):
        for name, run in list(methods.items())[:: -1 if index % 2 else 1]:
            seconds[name].append(cpu_seconds(run))
    return {name: of[1:] for name, of in seconds.items()}


def latencies(engine: Engine, tasks: list[ServedTask], batch: Batch) -> dict[int, list[float]]:
    """Wall milliseconds of single rows, one after the other: of random tasks among 1, 8 and 64 in turn."""
    draw = torch.Generator().manual_seed(2)
    found: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(REQUESTS):
        for count in COUNTS:
            task = tasks[int(torch.randint(count, (1,), generator=draw))]
            ids = batch["input_ids"][int(torch.randint(ROWS, (1,), generator=draw))].tolist()
            work = Work(task, {"input_ids": ids, "attention_mask": [1] * len(ids)}, time.monotonic() + 60)
            start = time.perf_counter()
            engine.submit([work])
            work.answer.result()
            found[count].append(1e3 * (time.perf_counter() - start))
    return found


def memory_of_many(served: ServedTasks, made: list[te.Delta], folder: Path) -> tuple[float, int]:
    """Resident bytes that each of many tasks adds, and the bytes of its file."""
    files = [te.save(delta, folder / f"m{index}.safetensors") for index, delta in enumerate(made)]
    served.add("warm", files[0])
    gc.collect()
    before = psutil.Process().memory_info().rss
    for index in range(MANY):
        served.add(f"many{index}", files[index % len(files)])
    gc.collect()
    return (psutil.Process().memory_info().rss - before) / MANY, files[0].stat().st_size


def main() -> None:
    model, calibration = setup()
    model.eval()
    made = deltas(model, calibration, max(COUNTS))
    # of a process of one task, before the process holds the models of the other methods
    milliseconds = [apply_and_revert(model, made[0]) for _ in range(SWITCHES + 20)][20:]
    whole = calibration[-2]
    double = {key: torch.cat([whole[key], calibration[-1][key]]) for key in ("input_ids", "attention_mask")}
    batch = {key: value[:ROWS, :TOKENS].contiguous() for key, value in double.items()}
    engine = Engine()
    served = ServedTasks(ServedBase(assets.minilm(print)), engine)
    with tempfile.TemporaryDirectory() as folder:
        tasks = []
        for index, delta in enumerate(made):
            tasks += served.add(f"t{index}", te.save(delta, Path(folder, f"t{index}")))
        assert not any(task.alone for task in tasks)
        answers = logits_of(tasks[0].view, batch, [task.table for task in tasks]).double()
        base = copy.deepcopy(model)
        worst = 0.0
        for row in (0, 17, 63):
            with te.applied(base, made[row]), torch.no_grad():
                truth = base(**part_of(batch, [row])).logits.double()
            worst = max(worst, float((answers[row : row + 1] - truth).abs().max()))
        seconds = compare(model, tasks, made, batch)
        waits = latencies(engine, tasks, batch)
        resident, file_bytes = memory_of_many(served, made[:8], Path(folder))
    engine.close()
    applied, largest = seconds["one task applied"], f"mixed, {max(COUNTS)} tasks"
    theirs = seconds[f"PEFT LoRA r=8, {max(COUNTS)} tasks"]
    ratio = [a / b for a, b in zip(applied, seconds[largest], strict=True)]
    against = [a / b for a, b in zip(theirs, seconds[largest], strict=True)]
    table = tasks[0].memory_bytes
    figures = [
        figure(f"tokens per CPU second: {name}", [ROWS * TOKENS / each for each in of], unit="1/s")
        for name, of in seconds.items()
    ]
    figures += [
        at_least("throughput, 64 tasks mixed / one task applied", ratio, OF_APPLIED),
        at_least("throughput, 64 tasks mixed / PEFT LoRA r=8, 64 adapters", against, OF_PEFT),
        figure("largest difference to the applied delta", [worst], bar=1e-5),
        figure("table of a task / its file", [table / file_bytes], bar=OF_FILE, unit="x"),
        figure(f"resident memory of each of {MANY} tasks / its file", [resident / file_bytes], bar=OF_FILE, unit="x"),
        figure("apply and revert", milliseconds, bar=MILLISECONDS, unit="ms"),
    ]
    for count, of in waits.items():
        figures.append(figure(f"latency p50 of one row, {count} tasks", [statistics.median(of)], unit="ms"))
        figures.append(
            figure(f"latency p99 of one row, {count} tasks", [statistics.quantiles(of, n=100)[98]], unit="ms")
        )
    show(figures)
    setting = (
        f"all-MiniLM-L6-v2 in fp32, one thread, batches of {ROWS} x {TOKENS} tokens of movie reviews; deltas of one "
        "entry per neuron in all 36 encoder linears; CPU seconds, methods in turn; latencies in wall time, "
        "on a machine with other work"
    )
    details = {"file_bytes": file_bytes, "table_bytes": table, "resident_bytes": resident}
    write("serving", "mixed_batches", {"setting": setting, "figures": figures, **details})


def at_least(what: str, values: list[float], bar: float) -> dict[str, object]:
    """A figure that must reach its bar."""
    made = figure(what, values, unit="x")
    return made | {"bar": bar, "met": made["median"] >= bar}


if __name__ == "__main__":
    main()
