"""A prediction that is written as it proceeds, and that a killed process can continue.

Beside the output ``OUT`` lies the folder ``OUT.partial`` while a prediction runs:

    rows       the rows so far, as they will be in OUT
    run.json   what the prediction depends on, the number of rows and bytes, and a digest of these bytes

Rows are appended in blocks. ``run.json`` is replaced after each block, so that whatever a killed process wrote after
that is cut off when the prediction resumes. Blocks begin at fixed rows, so that a resumed prediction forms the same
batches and ends with the same bytes. The last step gives ``rows`` the name ``OUT``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from taskedge.errors import InputError
from taskedge.io.atomic import WriteError, append, link_target, move_atomic, write_atomic
from taskedge.reporting.tables import count_text
from taskedge.training.config import changes_text
from taskedge.training.inference import Inference

FORMAT = "taskedge-prediction/1"
_RUN_FILE, _ROWS_FILE = "run.json", "rows"
_DIGESTS = {"delta": "another delta", "data": "other data", "base": "another base", "tokens": "another tokenizer"}


class PredictionRun:
    """Rows of a prediction on their way into a file.

    Attributes:
        num_rows: rows that are written.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = partial_folder(out)
        self.num_rows = 0
        self._identity: dict[str, Any] = {}
        self._num_bytes = 0
        self._digest = _new_digest()

    def start(self, identity: Mapping[str, Any]) -> None:
        """Begin anew. A folder of an interrupted prediction is removed.

        Args:
            identity: what the rows depend on, JSON-able: digests under ``delta``, ``data``, ``base`` and ``tokens``,
                and the options by their flags.
        """
        self._identity = dict(identity)
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.mkdir()
            (self.folder / _ROWS_FILE).touch()
            self._save()
        except OSError as error:
            raise WriteError(self.out, str(error.strerror)) from None
        except WriteError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def resume(self, identity: Mapping[str, Any]) -> None:
        """Continue an interrupted prediction, after the last row that is known to be whole.

        Raises:
            InputError: there is none, it depends on other things, or its files are damaged. The message states which.
        """
        stored = _read_run(self.folder)
        changed = _changes(stored["identity"], identity)
        if changed:
            raise InputError(
                f"{self.folder}: the interrupted prediction had {changed}: resume it with those, or start "
                "anew with --replace"
            )
        self._identity = dict(identity)
        rows = self.folder / _ROWS_FILE
        if not rows.exists() and self.out.is_file() and file_digest(self.out) == stored["digest"]:
            shutil.copyfile(self.out, rows)  # it was killed after the rows got their name
        try:
            with rows.open("r+b") as file:
                content = file.read(stored["bytes"])
                file.truncate(stored["bytes"])
        except OSError as error:
            raise InputError(f"{rows} cannot be read ({error.strerror}): start anew with --replace") from None
        self._digest.update(content)
        if self._digest.hexdigest() != stored["digest"]:
            raise InputError(f"{rows} was changed since it was written: start anew with --replace")
        self.num_rows, self._num_bytes = stored["rows"], len(content)

    def append(self, text: str, num_rows: int) -> None:
        """Append rows and flush them to the disk.

        Raises:
            WriteError: they cannot be written; the rows before them are kept.
        """
        content = text.encode()
        try:
            append(self.folder / _ROWS_FILE, content)
        except WriteError as error:
            raise WriteError(self.out, error.reason, self._advice()) from None
        self._digest.update(content)
        self.num_rows += num_rows
        self._num_bytes += len(content)
        self._save()

    def finish(self) -> None:
        """Give the rows their name, and remove the folder."""
        rows = self.folder / _ROWS_FILE
        _use_umask(rows, self.folder)
        move_atomic(rows, self.out)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self) -> None:
        state = {"format": FORMAT, "identity": self._identity, "rows": self.num_rows, "bytes": self._num_bytes}
        try:
            write_atomic(
                self.folder / _RUN_FILE, json.dumps(state | {"digest": self._digest.hexdigest()}, indent=1).encode()
            )
        except WriteError as error:
            raise WriteError(self.out, error.reason, self._advice()) from None

    def _advice(self) -> str:
        if not self.num_rows:
            return ""
        return f": make room, then continue after {count_text(self.num_rows, 'row')} with --resume"


def partial_folder(out: Path) -> Path:
    """Return the folder of a prediction that is under way: beside the output, or the target of a link there."""
    target = link_target(out)
    return target.with_name(f"{target.name}.partial")


def check_prediction_output(out: Path, *, resume: bool, replace: bool) -> None:
    """Check that a prediction may write ``out``, before any work.

    Raises:
        InputError: ``out`` or an interrupted prediction exists, and no option decides what to do with it; ``out`` is a
            folder; with ``resume``, there is nothing to resume.
    """
    folder = partial_folder(out)
    interrupted = (folder / _RUN_FILE).exists()
    if out.is_dir():
        raise InputError(f"{out} is a folder: name a file with --out")
    if folder.exists() and not interrupted and any(folder.iterdir()):
        extra = sorted(path.name for path in folder.iterdir() if path.name != _ROWS_FILE)
        if extra:
            raise InputError(f"{folder} holds {extra[0]}, which is of no prediction: move it, or name another --out")
    if resume:
        if not interrupted:
            raise InputError(
                f"there is no interrupted prediction {folder}, so there is nothing to resume: correct --out, or start "
                "without --resume"
            )
        return
    if out.exists() and not replace:
        raise InputError(f"{out} exists: name another file with --out, or replace it with --replace")
    if interrupted and not replace:
        done = _read_run(folder)["rows"]
        raise InputError(
            f"{folder} holds an interrupted prediction of {count_text(done, 'row')}: continue it with --resume, or "
            "start anew with --replace"
        )


def inference_digests(inference: Inference) -> dict[str, str]:
    """Return digests of the data, of the weights with the delta applied, and of the tokens that the data becomes."""
    data = _new_digest(json.dumps(inference.identity).encode())
    tokens = _new_digest()
    for row in inference.rows:
        for name in ("prompt", "input_ids"):
            tokens.update(np.asarray(row.get(name, ()), np.int64).tobytes())
    return {"data": data.hexdigest(), "base": model_digest(inference.base.model), "tokens": tokens.hexdigest()}


def model_digest(model: nn.Module) -> str:
    """Return a digest of all parameters and buffers: their names, dtypes and shapes, and the sum of their bits.

    The sums are modulo 2^64, and as fast as memory is read. Any single change of a value changes one.
    """
    total = _new_digest()
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        width = next(width for width in (4, 2, 1) if bits.numel() % width == 0)
        words = bits.view({4: torch.int32, 2: torch.int16, 1: torch.uint8}[width])
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {int(words.sum(dtype=torch.int64))}\n".encode())
    return str(total.hexdigest())


def file_digest(path: Path) -> str:
    """Return a digest of a file's bytes."""
    return str(_new_digest(path.read_bytes()).hexdigest())


def _new_digest(content: bytes = b"") -> Any:
    return hashlib.blake2b(content, digest_size=16)


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / _RUN_FILE
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored["format"] != FORMAT:
            raise InputError(f"{path}: format {stored['format']!r}; this version reads {FORMAT}: start with --replace")
        if not isinstance(stored["identity"], dict) or not isinstance(stored["digest"], str):
            raise ValueError("an entry is of another type")
        if min(int(stored["rows"]), int(stored["bytes"])) < 0:
            raise ValueError("a count is negative")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: the file is damaged ({error}): start anew with --replace") from None
    return stored


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs, in words for a message; empty if nothing does."""
    words = dict(_DIGESTS)
    if before.get("data") != now.get("data"):
        words.pop("tokens")  # the data explains them
        before, now = ({name: value for name, value in part.items() if name != "tokens"} for part in (before, now))
    return changes_text(before, now, words)


def _use_umask(path: Path, folder: Path) -> None:
    """Give a file the read and write permissions of a folder that was made with the umask."""
    path.chmod(folder.stat().st_mode & 0o666)
