"""A checkpoint: the trained tensors, the optimiser and the position. Never a copy of the base, and no pickle.

A folder ``checkpoint-STEP`` with two files: ``trainer_state.json`` (the Trainer's position and log) and
``state.safetensors`` (trained parameters, optimiser tensors, random generators, and where entries are that moved; the
rest as JSON in its metadata, and a digest over all of both files).
It is written under another name and renamed when it is whole, so that one that is there can be resumed from.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskedge.delta.file import content_digest
from taskedge.errors import InputError, TaskEdgeError
from taskedge.forms.install import installation
from taskedge.forms.regrow import restore, standing

STATE = "state.safetensors"
POSITION = "trainer_state.json"
PREFIX = "checkpoint-"
_SUPPORT = "support/"


def write(folder: Path, step: int, model: nn.Module, optimizer: Any, scheduler: Any, trainer_state: str) -> Path:
    """Writes ``folder/checkpoint-STEP`` and removes all but the one before it; returns its path.

    Two are kept since values turn out to be bad only at the step after they were written (:func:`discard`).

    Raises:
        InputError: it cannot be written (no space left, say); the checkpoints before it are untouched.
    """
    from safetensors.torch import save

    target, aside = folder / f"{PREFIX}{step}", folder / f".{PREFIX}{step}.{os.getpid()}"
    tensors = {f"parameter/{name}": tensor.detach().cpu().contiguous() for name, tensor in _trained(model).items()}
    if installation(model) is not None:
        tensors |= {f"{_SUPPORT}{name}": flat for name, flat in standing(model).items()}
    optimizer_state = optimizer.state_dict()
    scalars: dict[str, Any] = {}
    for index, state in optimizer_state["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value.detach().cpu().contiguous()
            else:
                scalars[f"{index}/{key}"] = value
    python, legacy = random.getstate(), np.random.get_state(legacy=False)  # the Trainer seeds both
    tensors["random/torch"] = torch.random.get_rng_state()
    rest = {
        "step": step,
        "scalars": scalars,
        "groups": optimizer_state["param_groups"],
        "scheduler": scheduler.state_dict(),
        "random": {"python": python, "numpy": _plain(legacy)},
    }
    about = json.dumps(rest)
    content = save(tensors, {"rest": about, "digest": content_digest(about + trainer_state, tensors)})
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        (aside / STATE).write_bytes(content)
        (aside / POSITION).write_text(trainer_state)
        for file in aside.iterdir():
            _flush(file)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise InputError(
            f"{target}: the checkpoint cannot be written ({error.strerror}); older ones are whole: resume from them"
        ) from None
    for older in sorted(_all(folder), key=_step)[:-2]:
        shutil.rmtree(older, ignore_errors=True)
    return target


def discard(folder: Path, step: int) -> None:
    """Removes the checkpoint of ``step``, if there is one."""
    shutil.rmtree(folder / f"{PREFIX}{step}", ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """The checkpoint with the highest step, or None."""
    return max(_all(folder), key=_step, default=None)


class Checkpoint:
    """One checkpoint, read whole."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self.path = path
        with _blaming(path), safe_open(path / STATE, framework="pt") as file:
            about = file.metadata()["rest"]
            self._rest = json.loads(about)
            self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = content_digest(about + (path / POSITION).read_text(), self._tensors)
            if found != file.metadata()["digest"]:
                raise ValueError("its content does not match its digest")

    def restore_parameters(self, model: nn.Module) -> None:
        """Puts the trained parameters back, and the entries where they stood, if they had moved.

        Raises:
            TaskEdgeError: the model trains other parameters than those that were saved.
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
            with _blaming(self.path):
                restore(model, support)
        with torch.no_grad():
            for name, tensor in saved.items():
                trained[name].copy_(tensor)

    def restore_optimizer(self, optimizer: Any, scheduler: Any) -> None:
        """Puts the optimiser's and the schedule's state back."""
        state: dict[int, dict[str, Any]] = {}
        with _blaming(self.path):
            for name, tensor in self._tensors.items():
                if name.startswith("optimizer/"):
                    _, index, key = name.split("/")
                    state.setdefault(int(index), {})[key] = tensor
            for name, value in self._rest["scalars"].items():
                index, key = name.split("/")
                state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": self._rest["groups"]})
            scheduler.load_state_dict(self._rest["scheduler"])

    def restore_random(self) -> None:
        """Puts the random generators back to where they were."""
        with _blaming(self.path):
            version, numbers, gauss = self._rest["random"]["python"]
            random.setstate((version, tuple(numbers), gauss))
            numpy_state = self._rest["random"]["numpy"]
            numpy_state["state"]["key"] = np.asarray(numpy_state["state"]["key"], dtype=np.uint32)
            np.random.set_state(numpy_state)
            torch.random.set_rng_state(self._tensors["random/torch"])


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of the checkpoint there."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: the checkpoint is damaged ({error}): remove the folder and start anew") from None


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX}*") if path.is_dir() and path.name[len(PREFIX) :].isdigit()]


def _step(path: Path) -> int:
    return int(path.name[len(PREFIX) :])


def _plain(state: Any) -> Any:
    """A numpy generator state with its array as a list."""
    return state | {"state": state["state"] | {"key": state["state"]["key"].tolist()}}


def _flush(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
