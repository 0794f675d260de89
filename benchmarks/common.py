"""What every benchmark states beside its figures: machine, versions, and a place for its results."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, accelerator (where one computed) and versions of what was measured."""
    import torch

    versions = {name: metadata.version(name) for name in ("torch", "transformers", "numpy")}
    for name in ("peft", "numba"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "processor": _processor(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        **({} if device == "cpu" else {"accelerator": torch.cuda.get_device_name(device)}),
    } | versions


def write(name: str, result: dict[str, Any]) -> Path:
    """Writes ``results/NAME.json`` with the command that made it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    command = " ".join(["python", str(Path(sys.argv[0])), *sys.argv[1:]])
    path.write_text(json.dumps({"command": command, "machine": machine()} | result, indent=1) + "\n")
    return path


def figure(what: str, values: Sequence[float], *, bar: float | None = None, unit: str = "") -> dict[str, Any]:
    """The median of what was measured with its quartiles, beside the bar that it is to stay under."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    stated = {"what": what, "median": median, "quartiles": [low, high], "unit": unit, "samples": len(values)}
    return stated | ({} if bar is None else {"bar": bar, "met": median <= bar})


def show(figures: Sequence[dict[str, Any]]) -> None:
    """Prints figures as a small table."""
    for line in figures:
        low, high = line["quartiles"]
        bar = f"bar {line['bar']:g}: {'met' if line['met'] else 'MISSED'}" if "bar" in line else ""
        setting = f" (dropout {line['dropout']:g})" if "dropout" in line else ""
        print(f"{line['what'] + setting:62} {line['median']:9.3f} {line['unit']:5} ({low:.3f} to {high:.3f})  {bar}")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
