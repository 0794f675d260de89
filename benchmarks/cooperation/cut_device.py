"""Memory and work of the device that trains over the cut, beside `taskedge tune` of the same task: MiniLM-L6.

    OMP_NUM_THREADS=1 python -m benchmarks.cooperation.cut_device  # minutes; resumable

The cloud and the device are processes of their own, on one machine, over NATS with mutual TLS. Memory is the largest
resident set of the device's process. Half of this model is its embedding, 11.9 of 22.7 million numbers, which the
device holds. The files that the device got are read to see that no weight of a block is among them. Work is the closed
form of matrix products, without embedding, attention scores and head.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.cooperation.cut_setting import WAYS, minilm_groups, write_texts
from benchmarks.record import results, write
from taskedge.cooperation.cut.cut_plan import plan_step
from taskedge.demo.assets import minilm

RESULTS = ("cut_device.json",)
ROWS, TOKENS, STEPS = 16, 64, 3
BLOCK_WEIGHTS = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
"""Weights of the linears in the blocks."""
LOWEST_WEIGHTS = 3 * 384 * 384
"""Those of the lowest group, whose input needs no gradient."""
FLAGS = {
    "32 rows x 32 columns": ["--columns", "32", "--max-rows", "32"],
    "LoRA, rank 8": ["--form", "lora", "--rank", "8"],
}


def taskedge(*arguments: str | Path) -> list[str]:
    """Return the command of a verb."""
    return [sys.executable, "-m", "taskedge", *map(str, arguments)]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def peak_bytes(command: list[str]) -> int:
    """Run a command to its end and return its largest resident set."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return 1024 * usage.ru_maxrss


def tune_flops(way: str) -> int:
    """Return the operations of a step of `tune`: frozen products forward and back to inputs, and those of what trains.

    Entries that train are in the weight, so they add only the product of their gradient; factors add all of theirs.
    """
    tokens, groups = ROWS * TOKENS, minilm_groups(way)
    frozen = 2 * tokens * (2 * BLOCK_WEIGHTS - LOWEST_WEIGHTS)
    if WAYS[way].get("rank"):
        return frozen + plan_step(groups, tokens, 384).device_flops
    return frozen + sum(2 * tokens * group.columns * sum(group.rows) for group in groups)


def held_numbers(bundle: Path) -> dict[str, int]:
    """Return how many numbers the device got from the cloud, in blocks and elsewhere."""
    counts = {"in_blocks": 0, "elsewhere": 0}
    for path in bundle.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                inside = "encoder.layer." in name
                counts["in_blocks" if inside else "elsewhere"] += math.prod(file.get_slice(name).get_shape())
    return counts


def main() -> None:
    model = minilm(print)
    imports = peak_bytes([sys.executable, "-c", "import torch, transformers; transformers.AutoModel"])
    print(f"a process that imports torch and transformers: {imports / 1e6:.0f} MB")
    path = results("cooperation") / "cut_device.json"
    lines: list[dict[str, Any]] = json.loads(path.read_text())["details"]["runs"] if path.exists() else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = write_texts(folder, ROWS * STEPS, TOKENS)
        data = ["--train", texts, "--text", "text", "--label", "label", "--epochs", "1", "--batch-size", ROWS]
        data += ["--max-length", TOKENS, "--threads", "1", "--force"]
        init = taskedge("cooperate", "init", "--name", "cut", "--port", str(free_port()))
        subprocess.run(init, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        fleet = folder / "cut"
        enrol = taskedge("cooperate", "enrol", "device", "--folder", fleet)
        subprocess.run(enrol, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        bundle = fleet / "devices" / "device"
        serving = subprocess.Popen(taskedge("cut", "serve", "--model", model, "--folder", fleet, "--threads", "1"))
        try:
            for way in FLAGS.keys() - {line["what"] for line in lines}:
                flags = FLAGS[way]
                out = ["--out", folder / "task.safetensors"]
                over_cut = peak_bytes(taskedge("cut", "train", "--bundle", bundle, *data, *flags, *out))
                alone = peak_bytes(taskedge("tune", "--model", model, *data, *flags, *out))
                plan = plan_step(minilm_groups(way), ROWS * TOKENS, 384)
                whole = tune_flops(way)
                lines.append(
                    {
                        **{"what": way, "batch": [ROWS, TOKENS], "steps": STEPS},
                        **{"device_peak_bytes": over_cut, "tune_peak_bytes": alone, "memory": over_cut / alone},
                        **{"numbers_the_device_got": held_numbers(bundle)},
                        **{"device_flops": plan.device_flops, "tune_flops": whole, "work": plan.device_flops / whole},
                    }
                )
                print(lines[-1], flush=True)
                assert not lines[-1]["numbers_the_device_got"]["in_blocks"]
                setting = f"MiniLM-L6, all linears, {ROWS} texts of {TOKENS} tokens"
                write("cooperation", "cut_device", {"setting": setting, "runs": lines, "imports_peak_bytes": imports})
        finally:
            serving.send_signal(signal.SIGINT)
            time.sleep(1)
            serving.kill()
            serving.wait()
            subprocess.run(taskedge("cooperate", "stop", "--folder", fleet), cwd=folder, check=False)


if __name__ == "__main__":
    assert FLAGS.keys() <= WAYS.keys()
    main()
