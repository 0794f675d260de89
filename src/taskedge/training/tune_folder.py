"""The folder of a run beside its output: what it holds, who may use it, and whether a run in it can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from taskedge.backbone.storage import current_name
from taskedge.errors import InputError
from taskedge.io.atomic import link_target, require_writable
from taskedge.io.lock import hold_lock
from taskedge.training.config import changes_text
from taskedge.training.run import Run
from taskedge.training.tasks import Log
from taskedge.training.tune_config import TuneConfig

SETTINGS_FILE, SUPPORT_FILE, MEMORY_FILE = "settings.json", "support.safetensors", "memory.json"
"""Files in the folder of a run, beside checkpoints and logs. A folder with settings holds an interrupted run."""

_DIGESTS = {
    "data_digest": "other training data",
    "held_out_digest": "other held-out data",
    "from_digest": "another delta to continue from",
    "avoid_digest": "other entries to avoid",
}
_BEFORE_THEY_EXISTED = {"step_exponent": 0.0}
"""What runs did before they had these settings, where it is not the default."""


def run_folder(config: TuneConfig) -> Path:
    """Return the folder of a run's checkpoints and logs: beside its output."""
    return config.out.with_name(f"{config.out.name}.run")


def is_interrupted(folder: Path) -> bool:
    """Return whether the folder holds a run that can be resumed."""
    return (folder / SETTINGS_FILE).exists()


def check_parent(out: Path) -> None:
    """Check that a file can be made under the name of the output."""
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}: make it, or name another with --out")
    if out.is_dir():
        raise InputError(f"{out} is a folder: name a file with --out")
    require_writable(out)


def check_output(out: Path, folder: Path, *, resume: bool, force: bool) -> None:
    """Check that the run may write its files, before any work."""
    if out.exists() and not force and not (resume and is_interrupted(folder)):
        raise InputError(f"{out} exists: name another file with --out, or replace it with --force")
    if is_interrupted(folder) and not (resume or force):
        raise InputError(f"{folder} holds an interrupted run: continue it with --resume, or start anew with --force")


@contextmanager
def hold_locks(out: Path, folder: Path) -> Iterator[bool]:
    """Hold the locks on the run's folder and on the output; yield whether an earlier run was killed.

    Other verbs lock the output only. If it is a symbolic link, its target and the folder of that are locked as well.
    """
    with ExitStack() as stack:
        was_killed = stack.enter_context(hold_lock(folder))
        stack.enter_context(hold_lock(out))
        if out.is_symlink():
            target = link_target(out)
            stack.enter_context(hold_lock(target.with_name(f"{target.name}.run")))
            stack.enter_context(hold_lock(target))
        yield was_killed


def check_was_killed(folder: Path, was_killed: bool, log: Log) -> None:
    """Check that a run which keeps nothing yet was killed, so that resuming it means to start anew.

    Raises:
        InputError: there was no such run; the message names the interrupted runs of the same folder.
    """
    if was_killed or folder.is_dir():
        log(f"{folder}: the run was killed before it kept anything: it starts anew")
        return
    interrupted = sorted(path.name for path in folder.parent.glob("*.run") if is_interrupted(path))
    shown = ", ".join(interrupted[:10]) + (", ..." if len(interrupted) > 10 else "")
    present = f"interrupted runs in {folder.parent}: {shown or 'none'}"
    raise InputError(
        f"there is no interrupted run {folder}, so there is nothing to resume ({present}): correct --out, or start "
        "without --resume"
    )


def run_identity(run: Run) -> dict[str, Any]:
    """Return what a resumed run must have in common: the data, and settings other than output, logs and budget."""
    excluded = {"out", "tensorboard", "eval", "checkpoint_every", "values", "memory", "allow", "strict", "log"}
    values: dict[str, Any] = json.loads(run.config.model_dump_json(exclude=excluded))
    rows = json.dumps([run.data.task.name, run.data.task.identity(run.data.train)])
    values["data_digest"] = hashlib.blake2b(rows.encode(), digest_size=8).hexdigest()
    data = run.data
    held_out = data.validation if data.validation is not None else data.eval
    if run.config.eval_every is not None and data.parts is None and held_out is not None:
        described = json.dumps(data.task.identity(held_out))
        values["held_out_digest"] = hashlib.blake2b(described.encode(), digest_size=8).hexdigest()
    if run.config.from_delta is not None:
        content = run.config.from_delta.read_bytes() if run.config.from_delta.is_file() else b""
        values["from_digest"] = hashlib.blake2b(content, digest_size=8).hexdigest()
    if run.config.avoid is not None:
        contents = b"".join(path.read_bytes() for path in run.config.avoid if path.is_file())
        values["avoid_digest"] = hashlib.blake2b(contents, digest_size=8).hexdigest()
    return values


def identity_changes(folder: Path, identity: Mapping[str, Any]) -> str:
    """Return what differs between the interrupted run in a folder and ``identity``; empty if nothing does."""
    stored = current_names(json.loads((folder / SETTINGS_FILE).read_text()))
    before = {name: field.default for name, field in TuneConfig.model_fields.items()} | _BEFORE_THEY_EXISTED | stored
    return changes_text(before, identity, _DIGESTS)


def current_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings that an earlier version stored, with their present names and values."""
    settings = {TuneConfig.old_names.get(name, name): value for name, value in settings.items()}
    if "weight_storage" in settings:
        settings["weight_storage"] = current_name(settings["weight_storage"])
    return settings
