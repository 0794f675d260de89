"""Split one table among devices on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from taskedge.cooperation.fleet.device_registry import check_name
from taskedge.cooperation.joint_task import JointTask
from taskedge.errors import InputError
from taskedge.io.atomic import write_atomic
from taskedge.training.data.image_data import image_paths
from taskedge.training.data_order import random_order
from taskedge.training.tasks import Columns

FOLDER_MODE = 0o700


def split_rows(
    labels: Sequence[str] | None, num_rows: int, num_devices: int, *, skew: bool, seed: int
) -> list[list[int]]:
    """Return the row indices of each device. Each row is on one device; their counts differ by at most one.

    Args:
        labels: Labels of the rows; None if there are no classes.
        num_rows: Number of rows.
        num_devices: Number of devices.
        skew: Whether each device gets a contiguous range of the rows sorted by label, so that it has few classes.
            Otherwise rows are drawn at random.
        seed: Seed of the random order.

    Raises:
        InputError: There are fewer rows than devices, or no labels to skew by.
    """
    if num_rows < num_devices:
        raise InputError(f"{num_rows} rows cannot be split among {num_devices} devices: ask for fewer")
    order = random_order(num_rows, seed)
    if not skew:
        return [order[i::num_devices] for i in range(num_devices)]
    if labels is None:
        raise InputError("--skew splits by label, and this data has no classes: leave it out")
    order.sort(key=lambda index: labels[index])
    bounds = [num_rows * i // num_devices for i in range(num_devices + 1)]
    return [order[start:end] for start, end in pairwise(bounds)]


def write_parts(
    joint: JointTask, folder: Path, names: Sequence[str], *, skew: bool, seed: int, must_match: bool
) -> Columns:
    """Write ``NAME.jsonl`` into ``folder`` for every device.

    Args:
        joint: The task, with its table.
        folder: Created if it does not exist.
        names: Names of the devices.
        skew: See :func:`split_rows`.
        seed: See :func:`split_rows`.
        must_match: Whether existing files must have the same content, because a run is resumed with them.

    Returns:
        The columns of the files.

    Raises:
        InputError: A name cannot be a device's, the data cannot be split, or it differs from existing files.
    """
    for name in names:
        check_name(name)  # before anything is written under it
    table = joint.table
    assert table is not None
    has_labels = table.labels is not None
    fields = next(columns for columns in joint.task.column_sets if (len(columns) == 2) == has_labels)
    inputs = [str(path.resolve()) for path in image_paths(table)] if fields[0] == "image" else table.texts
    parts = split_rows(table.labels if joint.labels else None, len(table), len(names), skew=skew, seed=seed)
    folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
    for name, indices in zip(names, parts, strict=True):
        lines = []
        for index in indices:
            row = [inputs[index], table.labels[index]] if table.labels else [inputs[index]]
            lines.append(json.dumps(dict(zip(fields, row, strict=True))) + "\n")
        content = "".join(lines).encode()
        path = folder / f"{name}.jsonl"
        if must_match and path.exists() and path.read_bytes() != content:
            raise InputError(
                f"{table.path}: the data, or its split, differs from that of the interrupted run: start anew with "
                "--force"
            )
        write_atomic(path, content, private=True)
    return Columns.of({name: [name] if name == "text" else name for name in fields})
