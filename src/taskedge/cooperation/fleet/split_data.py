"""One table parted among devices that run on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from taskedge.cooperation.device.sampling import permutation
from taskedge.cooperation.joint_task import JointTask
from taskedge.errors import InputError
from taskedge.io.atomic import write_aside
from taskedge.training.data.image_data import image_paths
from taskedge.training.tasks import Columns

PART_MODE = 0o700


def split(labels: Sequence[str] | None, rows: int, devices: int, *, skew: bool, seed: int) -> list[list[int]]:
    """Places of the rows of each device: every row on exactly one, and no two devices differ by more than one row.

    Args:
        labels: of the rows; with ``skew`` each device gets neighbours in their order, so few classes; else any rows.

    Raises:
        InputError: fewer rows than devices; nothing to skew by.
    """
    if rows < devices:
        raise InputError(f"{rows} rows cannot be split among {devices} devices: ask for fewer")
    order = permutation(rows, seed)
    if not skew:
        return [order[device::devices] for device in range(devices)]
    if labels is None:
        raise InputError("--skew splits by label, and this data has no classes: leave it out")
    order.sort(key=lambda place: labels[place])
    ends = [rows * device // devices for device in range(devices + 1)]
    return [order[start:end] for start, end in pairwise(ends)]


def write_parts(joint: JointTask, folder: Path, names: Sequence[str], *, skew: bool, seed: int, same: bool) -> Columns:
    """Writes ``NAME.jsonl`` into ``folder`` for every device; returns the columns that these files have.

    Args:
        same: they are those of a run that goes on, and must not have changed.

    Raises:
        InputError: the data cannot be split so, or is not what it was.
    """
    table = joint.table
    assert table is not None
    wanted = next(columns for columns in joint.task.reads if (len(columns) == 2) == (table.labels is not None))
    inputs = [str(path.resolve()) for path in image_paths(table)] if wanted[0] == "image" else table.texts
    classes = table.labels if joint.labels else None
    parts = split(classes, len(table), len(names), skew=skew, seed=seed)
    folder.mkdir(mode=PART_MODE, exist_ok=True)
    for name, places in zip(names, parts, strict=True):
        rows = ([inputs[place], *([table.labels[place]] if table.labels else [])] for place in places)
        content = "".join(json.dumps(dict(zip(wanted, row, strict=True))) + "\n" for row in rows).encode()
        path = folder / f"{name}.jsonl"
        if same and path.exists() and path.read_bytes() != content:
            raise InputError(
                f"{table.path}: the data, or how it is split, is not what it was when the run began: start anew "
                "with --force"
            )
        write_aside(path, content, private=True)
    return Columns.of({name: [name] if name == "text" else name for name in wanted})
