"""Whether `--memory` is ever exceeded: randomized small runs of the command line, each told a budget.

    python -m benchmarks.memory.memory_budget  # 50 runs; those that are in the results already stay

Model, texts, batch, length, form, rule and budget are drawn anew for each run. The memory is that of the whole process
from its start: loading, the prediction, the run. It is the kernel's own peak, read fifty times a second since the
measuring starts new peaks, and at the end (ru_maxrss). A run is refused with exit code 3 where nothing fits; the budget
that the refusal names is then tried as well, and must do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import results, write
from taskedge.demo import assets

RESULTS = (
    "memory_budget.json",
    "memory_budget.jsonl",
)

RECORDS = results("memory") / "memory_budget.jsonl"


def draw(number: int, folder: Path) -> tuple[list[str], int, dict[str, Any]]:
    """Arguments of a run without its budget, the budget in MB, and what was drawn."""
    dice = random.Random(number)
    generates = dice.random() < 0.15
    batch = dice.choice([2, 4] if generates else [4, 8, 16, 32])
    length = dice.choice([32, 64] if generates else [32, 64, 128])
    setting = {
        "model": "smollm2" if generates else "minilm",
        "batch_size": batch,
        "max_length": length,
        "rule": dice.choice(["taskedge", "taskedge", "magnitude", "random", "gradient"]),
        "form": dice.choice(["sparse", "sparse", "sparse", "sparse_lora"]),
        "eval": not generates and dice.random() < 0.5,
        "allow": dice.choice([[], [], ["depth"]]),
    }
    budget = dice.randint(1100, 1900) if generates else dice.randint(560, 1000)
    rows = assets.read_rows(assets.movie_reviews(print))
    dice.shuffle(rows)
    count = 3 * batch
    train, held_out = folder / ("train.txt" if generates else "train.csv"), folder / "eval.csv"
    if generates:
        train.write_text("\n".join(text.replace("\n", " ") for text, _ in rows[:count]) + "\n")
    else:
        assets.write_rows(train, rows[:count])
        assets.write_rows(held_out, rows[count : count + 40])
    base = assets.smollm2(print) if generates else assets.minilm(print)
    arguments = ["tune", "--model", str(base), "--train", str(train), "--out", str(folder / "out.safetensors")]
    arguments += ["--epochs", "1", "--threads", "1", "--calibration", "2", "--json", "--force"]
    for name in ("batch_size", "max_length", "rule", "form"):
        arguments += [f"--{name.replace('_', '-')}", str(setting[name])]
    arguments += ["--eval", str(held_out)] if setting["eval"] else []
    for name in setting["allow"]:
        arguments += ["--allow", name]
    return arguments, budget, setting


def run(arguments: list[str], budget: int) -> dict[str, Any]:
    """One process: its exit code, and its peak in MB as the kernel counted it."""
    command = [sys.executable, "-m", "taskedge.cli.main", *arguments, "--memory", f"{budget}MB"]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        highest = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            highest = max(highest, kernel_peak(process.pid))
            time.sleep(0.02)
        code, peak = os.waitstatus_to_exitcode(status), max(highest, usage.ru_maxrss * 1024) / 1e6
        out.seek(0), err.seek(0)
        told, said = out.read(), err.read()
    found: dict[str, Any] = {"budget": budget, "code": code, "peak": round(peak, 1), "kept": peak <= budget}
    if code == 0:
        predicted = json.loads(told)["predicted"]
        found |= {"way": predicted["config"], "predicted": round(predicted["memory"]["peak"] / 1e6, 1)}
    elif code == 3:
        found["named"] = int(re.findall(r"give --memory (\d+)MB", said)[-1])
    else:
        found["error"] = said.strip().splitlines()[-1]
    return found


def kernel_peak(pid: int) -> int:
    """Bytes: the highest resident set of a process since a new peak was started; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    arguments = parser.parse_args()
    RECORDS.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    done = {row["run"] for row in rows}
    for number in (number for number in range(arguments.runs) if number not in done):
        with tempfile.TemporaryDirectory() as folder:
            words, budget, setting = draw(number, Path(folder))
            first = run(words, budget)
            row = {"run": number, "setting": setting} | first
            if first["code"] == 3:
                row["again"] = run(words, first["named"])
        rows.append(row)
        with RECORDS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    trained = [one for row in rows for one in (row, row.get("again", {})) if one.get("code") == 0]
    summary = {
        "runs": len(rows),
        "trained": sum(row["code"] == 0 for row in rows),
        "refused": sum(row["code"] == 3 for row in rows),
        "failed otherwise": sum(row["code"] not in (0, 3) for row in rows),
        "exceeded": sum(not one["kept"] for one in trained),
        "refused, and trained within the budget that was named": sum(
            row.get("again", {}).get("code") == 0 and row["again"]["kept"] for row in rows
        ),
    }
    print(write("memory", "memory_budget", {"summary": summary, "runs": rows}))
    print(summary)


if __name__ == "__main__":
    main()
