"""The record of a benchmark: one schema for every result file, with the command, the machine and the versions.

A result is ``benchmarks/QUESTION/results/NAME.json`` with these keys:

    command   the command that measured it
    date      day of the measurement (of the commit, in results from before the key existed)
    machine   processor, accelerator, threads and versions of the packages that matter
    minutes   wall-clock minutes of the command (absent in results from before the key existed)
    setting   model, data and batch in a sentence (optional)
    figures   a list of :func:`figure` (optional)
    details   anything else: samples, configurations, summaries (optional)

A sweep that is resumed run by run appends to ``NAME.jsonl`` or ``NAME/TASK.jsonl`` instead, one run a line.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
IMAGES = ROOT / "docs" / "images"
TEST_HELPERS = ROOT / "tests" / "helpers"

KEYS = ("command", "date", "machine", "minutes", "setting", "figures", "details")
"""Keys of a result, in the order in which they are written."""
REQUIRED = ("command", "machine")

_STARTED = time.monotonic()


def results(question: str) -> Path:
    """Return the folder of results of one question, such as ``"cost"``."""
    folder = BENCHMARKS / question / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def machine(device: str = "cpu", *, packages: Sequence[str] = ("torch", "transformers", "numpy")) -> dict[str, Any]:
    """Return the processor, the accelerator (where one computed) and the versions that a measurement ran on."""
    versions = {name: _version(name) for name in (*packages, "peft", "numba")}
    about: dict[str, Any] = {"processor": _processor(), "python": platform.python_version(), "threads": _threads()}
    if device != "cpu":
        import torch

        about["accelerator"] = torch.cuda.get_device_name(device)
    return about | versions


def write(question: str, name: str, result: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> Path:
    """Write ``benchmarks/QUESTION/results/NAME.json`` with the command that made it.

    Args:
        question: folder of the benchmark.
        name: stem of the file.
        result: ``setting`` and ``figures`` keep their place; all other keys go into ``details``.
        about: what :func:`machine` said at the start, where it was called before the measurement.

    Returns:
        The path of the file.
    """
    record: dict[str, Any] = {
        "command": command(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": dict(about or machine()),
        "minutes": round((time.monotonic() - _STARTED) / 60, 1),
    }
    record |= {key: result[key] for key in ("setting", "figures") if key in result}
    details = {key: value for key, value in result.items() if key not in ("setting", "figures")}
    if details:
        record["details"] = details
    path = results(question) / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def command() -> str:
    """Return the command line of this process, as a reader can repeat it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"-m {spec.name}" if spec else str(Path(sys.argv[0]))
    threads = os.environ.get("OMP_NUM_THREADS")
    return " ".join([*([f"OMP_NUM_THREADS={threads}"] if threads else []), "python", program, *sys.argv[1:]])


def figure(what: str, values: Sequence[float], *, bar: float | None = None, unit: str = "") -> dict[str, Any]:
    """Return the median of the values with its quartiles, beside the bar that it must not exceed."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    stated = {"what": what, "median": median, "quartiles": [low, high], "unit": unit, "samples": len(values)}
    return stated | ({} if bar is None else {"bar": bar, "met": median <= bar})


def show(figures: Sequence[dict[str, Any]]) -> None:
    """Print figures as a small table."""
    for line in figures:
        low, high = line["quartiles"]
        bar = f"bar {line['bar']:g}: {'met' if line['met'] else 'MISSED'}" if "bar" in line else ""
        setting = f" (dropout {line['dropout']:g})" if "dropout" in line else ""
        print(f"{line['what'] + setting:62} {line['median']:9.3f} {line['unit']:5} ({low:.3f} to {high:.3f})  {bar}")


def rerun(*arguments: str) -> list[str]:
    """Return the command that runs this benchmark again in a process of its own (start it in :data:`ROOT`)."""
    return [sys.executable, "-m", sys.modules["__main__"].__spec__.name, *arguments]  # type: ignore[union-attr]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _threads() -> int | str:
    if "torch" in sys.modules:
        return int(sys.modules["torch"].get_num_threads())
    return os.environ.get("OMP_NUM_THREADS", "unset")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
