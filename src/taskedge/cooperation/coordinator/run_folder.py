"""The folder of a run: its settings, its support, and where its versions and its event log are."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator import versions
from taskedge.cooperation.coordinator.event_log import RUN_FILE
from taskedge.errors import InputError
from taskedge.io.atomic import write_atomic
from taskedge.planning.solvers import SOLVERS
from taskedge.selection.support import Support, load_support, save_support
from taskedge.training.config import changes_text

MAY_CHANGE = {
    "devices",
    "wait_seconds",
    "deadline_factor",
    "min_deadline",
    "first_deadline",
    "calibrate",
    "replan_drift",
    "norm_factor",
    "aggregate",
    "quarantine_after",
}
"""Settings that a resumed run may change."""
_SUPPORT = "support.safetensors"
_REMEDY = ": resuming the run restores it from a whole version"


class RunFolder:
    """The folder of a new run, or of one that is resumed.

    Args:
        path: The folder. For a new run it is created.
        config: The run's settings.
        base_digest: Digest of the base.
        labels: The classes.
        plan_digest: Digest of the plan file that the run follows; empty if it plans its rounds itself.
        resume: Whether to resume the run in the folder.

    Attributes:
        run_id: The id that all messages of the run carry.
        support: The support; None before it is chosen.
        resumed: Fields and tensors of the last committed version; None for a new run, or one without a version.
        identity: Settings and digests that a resumed run must share, JSON-able. Every version has them too.
        healed: Why ``run.json`` was written anew, from the last version; empty if it was not.

    Raises:
        InputError: The folder has a run and ``resume`` is False, or it has none and ``resume`` is True. Or the run was
            started with other settings, another base, other labels or another plan. Or the folder cannot be written.
    """

    def __init__(
        self,
        path: Path,
        config: CooperationConfig,
        base_digest: str,
        labels: Sequence[str],
        *,
        plan_digest: str = "",
        resume: bool,
    ) -> None:
        self.path = path
        identity = config.model_dump(exclude=MAY_CHANGE)
        identity |= {"base": base_digest, "labels": list(labels), "plan": plan_digest}
        self.run_id = secrets.token_hex(8)
        self.support: Support | None = None
        self.resumed: tuple[dict[str, Any], dict[str, Tensor]] | None = None
        self.identity, self.healed = identity, ""
        has_run = (path / RUN_FILE).exists() or versions.latest(path) is not None
        if has_run and not resume:
            raise InputError(f"{path} holds a run: resume it, or name another folder")
        if resume and not has_run:
            raise InputError(f"{path} holds no run to resume")
        if resume:
            self._resume()
        else:
            self._create()

    def save_support(self, support: Support) -> None:
        """Write the support. The run can be resumed from here on."""
        save_support(support, self.path / _SUPPORT)
        self.support = support

    @property
    def run_fields(self) -> dict[str, Any]:
        """The content of ``run.json``, which every version has as well: a version alone can be resumed."""
        return {"run": self.run_id, "identity": self.identity}

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be made ({error.strerror})") from None
        self._write_run_file(self.run_fields)

    def _write_run_file(self, fields: dict[str, Any]) -> None:
        write_atomic(self.path / RUN_FILE, json.dumps(fields, indent=1).encode())

    def _resume(self) -> None:
        identity = self.identity
        last = versions.latest(self.path)
        self.resumed = versions.read(last) if last and (self.path / _SUPPORT).exists() else None
        try:
            self.run_id, stored = read_run_file(self.path)
        except InputError as error:
            fields = self.resumed[0].get("run_file") if self.resumed else None
            damage = str(error).removesuffix(_REMEDY)
            if last is None or fields is None:  # versions of earlier revisions have none
                raise InputError(f"{damage}, and no version restores it: start anew in another folder") from None
            self._write_run_file(fields)
            self.run_id, stored = read_run_file(self.path)
            self.healed = f"{damage}: written anew from {last.name}"
        self.identity = dict(stored)
        stored.setdefault("plan", "")  # runs of earlier revisions follow no plan file
        labels = f"other labels: {stored.get('labels')} (now {identity['labels']})"
        names = {"base": "another base", "plan": "another plan", "labels": labels}
        changed = changes_text(stored, dict(sorted(identity.items())), names)
        if changed:
            raise InputError(
                f"the run was begun with other settings: {changed}: resume it with those, or begin another"
            )
        if (self.path / _SUPPORT).exists():
            self.support = load_support(self.path / _SUPPORT)


def read_run_file(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the id and the settings of the run in a folder; former names of settings and solvers are translated.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / RUN_FILE
    try:
        content = json.loads(path.read_bytes())
        run_id, stored = str(content["run"]), dict(content["identity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}){_REMEDY}") from None
    settings = {CooperationConfig.old_names.get(key, key): value for key, value in stored.items()}
    if isinstance(settings.get("solver"), str):
        settings["solver"] = SOLVERS.current_name(settings["solver"])
    return run_id, settings
