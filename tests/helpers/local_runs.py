"""Runs of ``taskedge cooperate local`` with real processes, and what is left of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_task

from taskedge.cli.cooperate import event_display


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes that name the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(process.name) != os.getpid() and any(str(folder).encode() in word for word in words):
            found.append(b" ".join(words).decode())
    return found


def local_run(task: Path, folder: Path, *more: Any) -> list[str]:
    """Arguments of a run of 4 short rounds whose values do not depend on the machine's clock."""
    fixed = ["--model", task / "base", "--train", task / "train.csv", "--devices", 2, "--threads", 1]
    short = ["--budget", "2%", "--rounds", 4, "--batch-size", 8, "--no-calibrate", "--min-deadline", 60]
    return list(map(str, ["cooperate", "local", *fixed, *short, "--out", folder / "task.safetensors", *more]))


def on_event(act: Callable[[dict[str, Any]], None], display: Any = event_display.TaskTable) -> Callable[[], None]:
    """For ``tiny_task.forked``: calls ``act`` with every event that is shown."""

    def before() -> None:
        show = display.__call__

        def shown(self: Any, event: dict[str, Any]) -> None:
            show(self, event)
            act(event)

        display.__call__ = shown

    return before


def files(folder: Path) -> dict[str, Any]:
    """Names and contents of all files but locks."""
    found = tiny_task.snapshot(folder)
    return {name: content for name, content in found.items() if not name.endswith((".lock", ".coordinator"))}
