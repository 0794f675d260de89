"""What every benchmark states beside its figures: machine, versions, and a place for its results."""

from __future__ import annotations

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor and versions of what was measured."""
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
    } | versions


def write(name: str, result: dict[str, Any]) -> Path:
    """Writes ``results/NAME.json`` with the command that made it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    command = " ".join(["python", str(Path(sys.argv[0])), *sys.argv[1:]])
    path.write_text(json.dumps({"command": command, "machine": machine()} | result, indent=1) + "\n")
    return path


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
