"""The folder of a run: who it is, its support, its versions and its log."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.coordinator import versions
from taskedge.cooperation.coordinator.event_log import RUN
from taskedge.errors import InputError
from taskedge.io.atomic import write_aside
from taskedge.selection.support import Support
from taskedge.selection.support_file import load_support, save_support

MAY_CHANGE = {
    "devices",
    "wait_seconds",
    "deadline_factor",
    "least_deadline",
    "first_deadline",
    "follow_pace",
    "drift",
    "norm_factor",
    "quarantine_after",
}
"""Settings that a resumed run may have other values of."""
_SUPPORT = "support.safetensors"


class RunFolder:
    """Opens the folder of a new run, or of one that goes on.

    Attributes:
        run: the id that all messages of the run carry.
        resumed: state and tensors of the last committed version; None for a new run, or one without a version.

    Raises:
        InputError: it holds a run and this is not to go on with it; it was made with other settings, another base or
            other labels; it cannot be written.
    """

    def __init__(
        self, path: Path, settings: CooperateSettings, base: str, labels: Sequence[str], *, resume: bool
    ) -> None:
        self.path = path
        identity = {k: v for k, v in asdict(settings).items() if k not in MAY_CHANGE}
        identity |= {"base": base, "labels": list(labels)}
        self.run = secrets.token_hex(8)
        self.support: Support | None = None
        self.resumed: tuple[dict[str, Any], dict[str, Tensor]] | None = None
        if (path / RUN).exists():
            if not resume:
                raise InputError(f"{path} holds a run: resume it, or name another folder")
            self._go_on(identity)
            return
        if resume:
            raise InputError(f"{path} holds no run to resume")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be made ({error.strerror})") from None
        write_aside(path / RUN, json.dumps({"run": self.run, "identity": identity}, indent=1).encode())

    def keep(self, support: Support) -> None:
        """Writes the support, from which on the run can be resumed."""
        save_support(support, self.path / _SUPPORT)
        self.support = support

    def _go_on(self, identity: dict[str, Any]) -> None:
        try:
            stored = json.loads((self.path / RUN).read_text())
            before, self.run = stored["identity"], str(stored["run"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path / RUN}: damaged ({error}): start anew in another folder") from None
        changed = sorted(key for key in identity if before.get(key) != identity[key])
        if changed:
            raise InputError(
                "the run was begun with other settings: "
                + ", ".join(f"{key}={before.get(key)!r} (now {identity[key]!r})" for key in changed)
                + ": resume it with those, or begin another"
            )
        if (self.path / _SUPPORT).exists():
            self.support = load_support(self.path / _SUPPORT)
            last = versions.latest(self.path)
            self.resumed = versions.read(last) if last else None
