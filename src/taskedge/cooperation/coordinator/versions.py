"""Versions of a run on the disk: one safetensors file each, whole or not at all, the newest two kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from taskedge.delta.file import content_digest
from taskedge.errors import InputError
from taskedge.io.atomic import write_aside

PREFIX, SUFFIX = "version-", ".safetensors"
KEPT = 2


def commit(folder: Path, round_number: int, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Writes what a run is after a round, and removes all but the one before it.

    Args:
        state: JSON-able.
        tensors: on the CPU.

    Raises:
        InputError: it cannot be written (no space left, say); what was committed before is untouched.
    """
    from safetensors.torch import save

    path = folder / f"{PREFIX}{round_number}{SUFFIX}"
    about = json.dumps(state)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        write_aside(path, save(whole, {"state": about, "digest": content_digest(about, whole)}))
    except InputError as error:
        last = latest(folder)
        raise InputError(
            f"{error}; the run stops after round {round_number}: "
            + (f"{last.name} is whole, make room and resume from it" if last else "no version was written before")
        ) from None
    for older in _all(folder)[:-KEPT]:
        older.unlink(missing_ok=True)
    return path


def latest(folder: Path) -> Path | None:
    """The version of the latest round, or None."""
    return max(_all(folder), key=_round, default=None)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State and tensors of a version.

    Raises:
        InputError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()["state"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if content_digest(about, tensors) != file.metadata()["digest"]:
                raise ValueError("its content does not match its digest")
        return json.loads(about), tensors
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}): remove it to resume from the version before") from None


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix/``, without it."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mirror image of :func:`under`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _all(folder: Path) -> list[Path]:
    found = folder.glob(f"{PREFIX}*{SUFFIX}")
    return sorted((path for path in found if path.name[len(PREFIX) : -len(SUFFIX)].isdigit()), key=_round)


def _round(path: Path) -> int:
    return int(path.name[len(PREFIX) : -len(SUFFIX)])
