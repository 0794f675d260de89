"""Estimates of one run that measure it once only."""

from __future__ import annotations

from typing import Any

from taskedge.training.memory import decide


def measure_once(monkeypatch: Any, groups: dict[str, Any]) -> None:
    """Let ``estimate`` measure a run only the first time; its budget does not change what is measured.

    Args:
        monkeypatch: pytest's.
        groups: keeps the costs by the settings of the run.
    """

    class Measured(decide.MemoryProfiler):
        def __init__(self, run: Any, budget: int | None = None, on_group: Any = lambda _: None) -> None:
            key = run.config.model_copy(update={"memory": None}).model_dump_json()
            if key not in groups:
                super().__init__(run, budget, on_group)
                groups[key] = list(super().iter_groups(include_disallowed=True))
            self._groups = groups[key]

        def iter_groups(self, **_: Any) -> Any:
            yield from self._groups

    monkeypatch.setattr(decide, "MemoryProfiler", Measured)
