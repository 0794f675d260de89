"""Bytes of a round on a device's link, by mode, coding and number of devices: MiniLM-L6 at 0.1 %, six blocks.

    python -m benchmarks.cooperation.cooperation_bytes  # a few minutes

Counted are whole messages as they cross the link before encryption: facts, names, shapes and values. Every task but the
first of a run finds all values changed, which is the most that is ever sent down. What is in the values does not change
their size, so rounds are short: two rows each. Devices may answer for all blocks that they pass, whatever time that
takes (``traversal_slack``): the most that is ever sent up.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import logging

from benchmarks.cooperation.cooperation_runs import Setting, cooperate, patient, setting
from benchmarks.record import show, write

RESULTS = ("cooperation_bytes.json",)

UP_BAR, DOWN_BAR = 30.0, 100.0
ROUNDS = 3
RUNS = [
    *(("deft", "float8", devices) for devices in (6, 4, 3, 2)),
    *(("deft", upload, 6) for upload in ("bfloat16", "float32")),
    ("replicate", "float8", 4),
    ("fedavg", "float8", 4),
]


def measured(given: Setting, mode: str, upload: str, devices: int) -> list[dict[str, Any]]:
    """The largest task and answer of a run, after its first round."""
    settings = patient(
        mode=mode, upload=upload, devices=devices, rounds=ROUNDS, batch_size=2, calibration=1, traversal_slack=1e9
    )
    tasks = [task for task in cooperate(given, settings).of("task") if task["round"] > 1]
    blocks = max(len(task["blocks"]) - 1 for task in tasks)  # without the head
    about = f"{mode}, {upload}, {devices} devices, at most {blocks} block{'s' * (blocks > 1)} on one"
    barred = mode == "deft" and upload == patient().upload
    return [
        line(f"down: {about}", max(task["bytes_down"] for task in tasks), DOWN_BAR if barred else None),
        line(f"up: {about}", max(task["bytes_up"] for task in tasks), UP_BAR if barred else None),
    ]


def line(what: str, count: int, bar: float | None) -> dict[str, Any]:
    """Kilobytes beside their bar, in the form that ``show`` prints."""
    size = count / 1000
    about = {"what": what, "median": size, "quartiles": [size, size], "unit": "kB", "samples": 1}
    return about | ({} if bar is None else {"bar": bar, "met": size <= bar})


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = setting()
    figures = [figure for run in RUNS for figure in measured(given, *run)]
    show(figures)
    write(
        "cooperation", "cooperation_bytes", {"setting": __doc__.splitlines()[0] if __doc__ else "", "figures": figures}
    )


if __name__ == "__main__":
    main()
