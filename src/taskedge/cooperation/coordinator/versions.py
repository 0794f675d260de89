"""Versions of a run on disk: the state after a round, one container file each. The newest two are kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from taskedge.errors import InputError
from taskedge.io.container import ContainerKind

VERSION = ContainerKind(
    name="version", key="state", error=InputError, remedy="remove it to resume from the version before"
)
PREFIX, SUFFIX = "version-", ".safetensors"
NUM_KEPT = 2


def commit(folder: Path, round_number: int, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write the state of a run after a round, and remove all older versions but one.

    Args:
        folder: The run's folder.
        round_number: The round.
        fields: State as JSON-able fields.
        tensors: State as tensors, by name.

    Returns:
        The path of the version.

    Raises:
        InputError: It cannot be written, for lack of space for example. Versions committed before are intact.
    """
    path = folder / f"{PREFIX}{round_number}{SUFFIX}"
    try:
        VERSION.write(path, fields, tensors)
    except InputError as error:
        last = latest(folder)
        advice = f"{last.name} is whole, make room and resume from it" if last else "no version was written before"
        raise InputError(f"{error}; the run stops after round {round_number}: {advice}") from None
    for older in _versions(folder)[:-NUM_KEPT]:
        older.unlink(missing_ok=True)
    return path


def latest(folder: Path) -> Path | None:
    """Return the path of the version of the latest round; None if there is none."""
    return max(_versions(folder), key=_round_number, default=None)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the fields and tensors of a version.

    Raises:
        InputError: The file is damaged.
    """
    container = VERSION.read(path)
    return container.header, container.tensors


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names ``prefix/NAME``."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix/``, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _versions(folder: Path) -> list[Path]:
    """Return the paths of all versions, the oldest first."""
    paths = [path for path in folder.glob(f"{PREFIX}*{SUFFIX}") if _stem(path).isdigit()]
    return sorted(paths, key=_round_number)


def _round_number(path: Path) -> int:
    return int(_stem(path))


def _stem(path: Path) -> str:
    return path.name.removeprefix(PREFIX).removesuffix(SUFFIX)
