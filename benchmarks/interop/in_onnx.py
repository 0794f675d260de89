"""A tuned MiniLM in onnxruntime: how far its logits are off, what int8 costs, and how it starts without torch.

    python -m benchmarks.interop.in_onnx  # some minutes on one idle core

The task is movie reviews, tuned on the first rows of the data and exported as fp32 and as int8. Cold start and memory
are of one row in a new process: ``examples/onnx_without_torch.py`` beside ``taskedge predict``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import ROOT, figure, show, write
from taskedge.demo.assets.model_assets import minilm
from taskedge.demo.assets.text_assets import movie_reviews, read_rows, split, write_rows

RESULTS = ("in_onnx.json",)
TRAIN, HELD_OUT, STARTS = 320, 250, 3
EXAMPLE = ROOT / "examples" / "onnx_without_torch.py"


def taskedge(*arguments: Any) -> dict[str, Any]:
    """Run the command line in a process of its own, and return the JSON that it printed."""
    asked = [sys.executable, "-m", "taskedge", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(asked, capture_output=True, text=True, check=True, cwd=ROOT).stdout)  # type: ignore[no-any-return]


MEASURE = (
    "import resource, subprocess, sys, time; begin = time.perf_counter(); "
    "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True); "
    "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
    "print(time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)"
)
"""The peak that the kernel reports includes that of the process before ``exec``, which is the one that started it: so a
small process starts what is measured, without the site packages and by itself."""


def started(arguments: Sequence[str]) -> tuple[float, float, float]:
    """Return the seconds, the processor seconds and the peak memory in MB of a process."""
    asked = [sys.executable, "-I", "-S", "-c", MEASURE, *arguments]
    seconds, cpu, memory = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    return float(seconds), float(cpu), float(memory)


def main() -> None:
    """Tune, export, compare and write the figures."""
    sys.path.insert(0, str(EXAMPLE.parent))
    from onnx_without_torch import classify, load

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = split(read_rows(movie_reviews(print)), {"train": TRAIN, "held": HELD_OUT}, seed=0)
        parts["one"] = parts["held"][:1]
        for part, chosen in parts.items():
            write_rows(folder / f"{part}.csv", chosen)
        delta, data = folder / "task.safetensors", ("--text", "text", "--label", "label")
        taskedge(
            "tune", "--model", minilm(print), "--train", folder / "train.csv", *data, "--columns", 16, "--epochs", 1,
            "--max-length", 64, "--out", delta,
        )  # fmt: skip
        ours = taskedge("eval", delta, "--data", folder / "held.csv", *data)["accuracy"]
        (folder / "rows.txt").write_text("\n".join(text.replace("\n", " ") for text, _ in parts["held"][:64]) + "\n")
        figures = [figure("accuracy on held-out rows: taskedge", [100 * ours], unit="%")]
        for kind, more in {"fp32": [], "int8": ["--quantize", "int8"]}.items():
            out = folder / kind
            done = taskedge("export", delta, "--to", "onnx", "--out", out, "--check-rows", folder / "rows.txt", *more)
            task = load(out)
            held = parts["held"]
            found = [
                answer
                for start in range(0, len(held), 25)
                for answer in classify(*task, [text for text, _ in held[start : start + 25]])
            ]
            right = np.mean([answer == label for (answer, _), (_, label) in zip(found, held, strict=True)])
            bar = {"bar": 1e-4} if kind == "fp32" else {}
            figures += [
                figure(f"largest difference of logits, 64 rows: {kind}", [done["largest_difference"]], **bar),
                figure(f"accuracy on held-out rows: {kind}", [100 * float(right)], unit="%"),
                figure(f"model.onnx: {kind}", [(out / "model.onnx").stat().st_size / 1e6], unit="MB"),
            ]
        one = parts["one"][0][0]
        predict = [sys.executable, "-m", "taskedge", "predict", str(delta), "--data", str(folder / "one.csv")]
        programs = {
            "taskedge predict": [*predict, "--text", "text"],
            "onnxruntime, fp32": [sys.executable, str(EXAMPLE), str(folder / "fp32"), one],
            "onnxruntime, int8": [sys.executable, str(EXAMPLE), str(folder / "int8"), one],
        }
        for program, arguments in programs.items():
            starts = [started(arguments) for _ in range(STARTS)]
            figures += [
                figure(f"one row in a new process: {program}", [seconds for seconds, _, _ in starts], unit="s"),
                figure(f"processor seconds of that process: {program}", [cpu for _, cpu, _ in starts], unit="s"),
                figure(f"peak memory of that process: {program}", [memory for _, _, memory in starts], unit="MB"),
            ]
    show(figures)
    setting = f"all-MiniLM-L6-v2, 16 columns, one epoch on {TRAIN:,} movie reviews of 64 tokens; {HELD_OUT} held out"
    write("interop", "in_onnx", {"setting": setting, "figures": figures})


if __name__ == "__main__":
    main()
