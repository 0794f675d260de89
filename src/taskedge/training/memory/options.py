"""Memory-saving options, each an override of one setting.

Settings validation imports this module, so it imports neither torch nor the settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MemoryOption:
    """One setting that saves memory.

    Attributes:
        setting: name of a field of ``TuneConfig``.
        value: the value that saves memory.
        allowed_by: what ``--allow`` must list before this option can be chosen, because it changes the result. Empty
            for an option with exact gradients.
    """

    setting: str
    value: Any
    allowed_by: str = ""

    @property
    def name(self) -> str:
        """Text for tables and messages."""
        return str(self.value) if self.setting == "optimizer" else f"{self.setting.replace('_', '-')} {self.value}"


LOAD_OPTIONS = (
    MemoryOption("dtype", "bf16", "bf16"),
    MemoryOption("weight_storage", "int8", "int8"),
    MemoryOption("weight_storage", "int4", "int4"),
)
"""Ways to store the base weights. Each one needs the base to be loaded again."""

RECOMPUTE_OPTIONS = (MemoryOption("recompute", "inputs"), MemoryOption("recompute", "blocks"))
"""Recomputation in the backward pass, cheapest in time first."""

MEZO_OPTION = MemoryOption("optimizer", "mezo", "--optimizer")
"""Measured and listed, but never chosen: no learning rate suits both gradients and zeroth-order steps."""


def allowable_options() -> list[str]:
    """Return the values that ``--allow`` accepts, sorted."""
    names = {option.allowed_by for option in (*LOAD_OPTIONS, *RECOMPUTE_OPTIONS) if option.allowed_by}
    return sorted({"depth", *names})
