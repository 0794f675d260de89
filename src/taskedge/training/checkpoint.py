"""Checkpoints of a run: the trained tensors, the optimizer and the position. Never a copy of the base, and no pickle.

A checkpoint is a folder ``checkpoint-STEP`` with two files. ``state.safetensors`` holds trained parameters, optimizer
tensors, random generators, positions of entries that have moved, directions that LoRA-Dash chose, and running
statistics of the task's own norms; its header holds the rest, with a digest over the content of both files.
``trainer_state.json`` holds the position and the log. The folder is written under a temporary name and renamed when it
is complete, so that every checkpoint that exists can be resumed from.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskedge.errors import InputError, TaskEdgeError
from taskedge.forms.dash import dash_state
from taskedge.forms.install import installation
from taskedge.forms.regrow import moved_positions, set_positions
from taskedge.io.atomic import WriteError, atomic_folder
from taskedge.io.container import ContainerKind
from taskedge.training.callbacks import TrainState

CHECKPOINT = ContainerKind(
    name="checkpoint",
    key="rest",
    error=InputError,
    format="taskedge-checkpoint/2",
    older_formats=("",),
    remedy="remove the folder and start anew",
)
"""Version 1 had no ``format``. It also held the state of a learning-rate scheduler, and the state of transformers'
``Trainer`` as its position."""
STATE = "state.safetensors"
POSITION = "trainer_state.json"
PREFIX = "checkpoint-"
_SUPPORT = "support/"
_BUFFER = "buffer/"


def write(folder: Path, state: TrainState) -> Path:
    """Write ``folder/checkpoint-STEP``, remove all older checkpoints but one, and return its path.

    Two are kept because values turn out to be bad only in the step after they were written (:func:`discard`).

    Raises:
        InputError: it cannot be written (for example, no space is left). Older checkpoints are unchanged.
    """
    target = write_as(folder, f"{PREFIX}{state.step}", state)
    for older in sorted(_all(folder), key=_step)[:-2]:
        shutil.rmtree(older, ignore_errors=True)
    return target


def steps(folder: Path) -> list[int]:
    """Return the steps of all checkpoints, ascending."""
    return sorted(map(_step, _all(folder)))


def write_as(folder: Path, name: str, state: TrainState) -> Path:
    """Write ``folder/name`` with the content of a checkpoint, in place of one that exists, and return its path.

    Raises:
        InputError: it cannot be written (for example, no space is left).
    """
    target = folder / name
    model = state.model
    tensors = {f"parameter/{name}": tensor.detach().cpu().contiguous() for name, tensor in _trained(model).items()}
    if installation(model) is not None:
        tensors |= {f"{_SUPPORT}{name}": flat for name, flat in moved_positions(model).items()}
        tensors |= {
            f"{_BUFFER}{name}": value.detach().cpu().contiguous() for name, value in _fixed_state(model).items()
        }
    optimizer_state = state.optimizer.state_dict()
    scalars: dict[str, Any] = {}
    for index, values in optimizer_state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value.detach().cpu().contiguous()
            else:
                scalars[f"{index}/{key}"] = value
    tensors["random/torch"] = torch.random.get_rng_state()
    header = {
        "step": state.step,
        "scalars": scalars,
        "groups": optimizer_state["param_groups"],
        "random": {"python": random.getstate(), "numpy": _as_json(np.random.get_state(legacy=False))},
    }
    position = json.dumps({"global_step": state.step, "loss_sum": state.loss_sum, "log_history": state.log})
    content = CHECKPOINT.pack(header, tensors, also_digest=position)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(target) as tmp:
            (tmp / STATE).write_bytes(content)
            (tmp / POSITION).write_text(position)
    except (OSError, WriteError) as error:
        reason = error.reason if isinstance(error, WriteError) else error.strerror
        raise InputError(
            f"{target}: the checkpoint cannot be written ({reason}); older ones are complete: resume from them"
        ) from None
    return target


def discard(folder: Path, step: int) -> None:
    """Remove the checkpoint of ``step``, if there is one."""
    shutil.rmtree(folder / f"{PREFIX}{step}", ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """Return the checkpoint with the highest step, or None."""
    return max(_all(folder), key=_step, default=None)


class Checkpoint:
    """The content of one checkpoint.

    Args:
        path: its folder.

    Raises:
        InputError: it cannot be read, or does not match its digest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _errors_as_damage(path):
            content, position = (path / STATE).read_bytes(), (path / POSITION).read_text()
        container = CHECKPOINT.unpack(content, path=path, also_digest=position)
        self._header, self._tensors, self._position = container.header, container.tensors, position

    def restore(self, state: TrainState) -> None:
        """Restore parameters, optimizer and position; random generators apart (:meth:`restore_random`).

        Raises:
            TaskEdgeError: the model trains other parameters than those in the checkpoint.
        """
        self.restore_parameters(state.model)
        self.restore_optimizer(state.optimizer)
        with _errors_as_damage(self.path):
            position = json.loads(self._position)
            state.step = int(position["global_step"])
            state.log = list(position["log_history"])
            if "loss_sum" in position:
                state.loss_sum = float(position["loss_sum"])
            else:  # written by the Trainer of transformers, which versions before this loop used
                state.loss_sum = float(position["stateful_callbacks"]["taskedge_loss_sum"])

    def restore_parameters(self, model: nn.Module) -> None:
        """Restore the trained parameters, and the positions of entries if they had moved.

        Raises:
            TaskEdgeError: the model trains other parameters than those in the checkpoint.
        """
        prefix = "parameter/"
        saved = {name.removeprefix(prefix): t for name, t in self._tensors.items() if name.startswith(prefix)}
        trained = _trained(model)
        if saved.keys() != trained.keys() or any(saved[name].shape != trained[name].shape for name in saved):
            other = sorted(saved.keys() ^ trained.keys()) or sorted(saved)
            raise TaskEdgeError(
                f"{self.path}: made by another run: it differs in {other[0]!r}; start anew, or resume that run"
            )
        support = {name.removeprefix(_SUPPORT): t for name, t in self._tensors.items() if name.startswith(_SUPPORT)}
        if support:
            with _errors_as_damage(self.path):
                set_positions(model, support)
        buffers = dict(model.named_buffers())
        with torch.no_grad(), _errors_as_damage(self.path):
            for name, tensor in self._tensors.items():
                if name.startswith(_BUFFER):
                    buffers[name.removeprefix(_BUFFER)].copy_(tensor)
        with torch.no_grad():
            for name, tensor in saved.items():
                trained[name].copy_(tensor)

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Restore the state of the optimizer."""
        state: dict[int, dict[str, Any]] = {}
        with _errors_as_damage(self.path):
            for name, tensor in self._tensors.items():
                if name.startswith("optimizer/"):
                    _, index, key = name.split("/")
                    state.setdefault(int(index), {})[key] = tensor
            for name, value in self._header["scalars"].items():
                index, key = name.split("/")
                state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": self._header["groups"]})

    def restore_random(self) -> None:
        """Restore the random generators of Python, numpy and torch."""
        with _errors_as_damage(self.path):
            version, numbers, gauss = self._header["random"]["python"]
            random.setstate((version, tuple(numbers), gauss))
            numpy_state = self._header["random"]["numpy"]
            numpy_state["state"]["key"] = np.asarray(numpy_state["state"]["key"], dtype=np.uint32)
            np.random.set_state(numpy_state)
            torch.random.set_rng_state(self._tensors["random/torch"])


@contextmanager
def _errors_as_damage(path: Path) -> Iterator[None]:
    """Turn errors inside into one that says that the checkpoint is damaged."""
    try:
        yield
    except (OSError, LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise CHECKPOINT.damaged(error, path) from None


def _fixed_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that change in training: directions of LoRA-Dash, running statistics of the task's norms."""
    installed = installation(model)
    statistics = () if installed is None else installed.statistics
    return dash_state(model) | {name: model.get_buffer(name) for name in statistics}


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX}*") if path.is_dir() and path.name[len(PREFIX) :].isdigit()]


def _step(path: Path) -> int:
    return int(path.name[len(PREFIX) :])


def _as_json(state: Any) -> Any:
    """Return the state of a numpy generator with its array as a list."""
    return state | {"state": state["state"] | {"key": state["state"]["key"].tolist()}}
