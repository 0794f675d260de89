"""Delta files with names on the command line: ``spam=a.safetensors``, or ``a.safetensors``, whose name is ``a``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskedge.delta.delta import check_name
from taskedge.errors import DeltaError

NamedPath = tuple[str, Path]


class NamedDelta(click.ParamType):  # type: ignore[type-arg]  # generic in later versions of click only
    """``NAME=FILE``, or ``FILE`` with the name of the file without its suffix."""

    name = "[NAME=]FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> NamedPath:
        """Return (name, path); fail if the name cannot be one of a task."""
        if isinstance(value, tuple):
            return value
        name, sign, path = value.partition("=")
        if not sign or "/" in name or Path(value).exists():
            name, path = Path(value).stem, value
        try:
            check_name("task", name)
        except DeltaError as error:
            self.fail(f"{error}; write NAME={value}", param, ctx)
        return name, Path(path)
