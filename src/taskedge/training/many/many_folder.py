"""The folder of a ``tune-many`` run beside its output: supports, settings and checkpoints of a run that can go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskedge.errors import InputError
from taskedge.io.atomic import write_atomic
from taskedge.selection.support import Support, load_support, save_support
from taskedge.training.config import changes_text
from taskedge.training.many.many_config import TuneManyConfig
from taskedge.training.run import Run
from taskedge.training.tune_folder import SETTINGS_FILE, run_identity

_DATA = "data of "


def run_folder(config: TuneManyConfig) -> Path:
    """Return the folder of a run: beside its output."""
    return config.out.with_name(f"{config.out.name}.run")


def many_identity(config: TuneManyConfig, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Return what a resumed run must have in common: the tasks with their data, and settings other than the output."""
    values: dict[str, Any] = json.loads(config.model_dump_json(exclude={"out", "checkpoint_every"}))
    values["task"] = list(runs)
    return values | {f"{_DATA}{name}": run_identity(run)["data_digest"] for name, run in runs.items()}


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise InputError if the interrupted run in a folder had other tasks, data or settings."""
    try:
        before = json.loads((folder / SETTINGS_FILE).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / SETTINGS_FILE}: cannot be read ({error}): start anew with --replace") from None
    words = {name: f"other {name}" for name in identity if name.startswith(_DATA)}
    if changed := changes_text(before, identity, words):
        raise InputError(
            f"the interrupted run had other settings: {changed}: resume it with those, or start anew with --replace"
        )


def store_start(folder: Path, identity: Mapping[str, Any], supports: Sequence[Support]) -> None:
    """Write the supports, and the settings last: a folder without settings holds no run to resume.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that is replaced, or that was killed as it began
        folder.mkdir()
        for index, support in enumerate(supports):
            save_support(support, folder / f"support-{index}.safetensors")
        write_atomic(folder / SETTINGS_FILE, json.dumps(identity, indent=1).encode())
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}): name another file with --out") from None


def stored_supports(folder: Path, count: int) -> list[Support]:
    """Return the supports of an interrupted run: the shared one, then those of the tasks."""
    return [load_support(folder / f"support-{index}.safetensors") for index in range(count)]


def remove_folder(folder: Path) -> None:
    """Remove the folder of a run that has ended."""
    (folder / SETTINGS_FILE).unlink(missing_ok=True)  # first: if this is cut short, there is no run to resume
    shutil.rmtree(folder, ignore_errors=True)
