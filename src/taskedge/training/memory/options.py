"""The ladder: ways to train within less memory, as changes of settings. A rung is one line here.

Names, no torch: settings are checked against them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from taskedge.training.tune_config import TuneSettings


@dataclass(frozen=True)
class Rung:
    """One setting that spares memory."""

    setting: str
    value: Any
    allowed_by: str = ""
    """What ``--allow`` must name for it to be chosen, as it changes what is learnt; empty: gradients stay exact."""

    @property
    def name(self) -> str:
        """As a user reads it."""
        return str(self.value) if self.setting == "optimizer" else f"{self.setting.replace('_', '-')} {self.value}"


BASES = (Rung("dtype", "bf16", "bf16"), Rung("base", "int8", "int8"))
"""How the base is held; each is loaded anew."""

LOOPS = (Rung("recompute", "inputs"), Rung("recompute", "blocks"))
"""How a step is made, in the order of their cost in time."""

BY_HAND = Rung("optimizer", "mezo", "--optimizer")
"""Shown, and never chosen: no learning rate is right for gradients and for what does without."""


@dataclass(frozen=True)
class Place:
    """What must be loaded and selected anew: a base, and how deep training reaches."""

    rungs: tuple[Rung, ...] = ()

    @property
    def changes(self) -> dict[str, Any]:
        """Settings, by name."""
        return {rung.setting: rung.value for rung in self.rungs}


@dataclass(frozen=True)
class Way:
    """A combination of rungs."""

    rungs: tuple[Rung, ...]
    micro_batch: int | None

    @property
    def changes(self) -> dict[str, Any]:
        """Settings of the run that takes this way, by name."""
        return {rung.setting: rung.value for rung in self.rungs} | (
            {} if self.micro_batch is None else {"micro_batch": self.micro_batch}
        )

    @property
    def name(self) -> str:
        """As a user reads it."""
        parts = [rung.name for rung in self.rungs]
        parts += [] if self.micro_batch is None else [f"micro-batch {self.micro_batch}"]
        return ", ".join(parts) or "as it is"

    @property
    def exact(self) -> bool:
        """Whether its gradients are those of the run as it was asked for."""
        return not any(rung.allowed_by for rung in self.rungs)

    def allowed(self, allow: list[str] | None) -> bool:
        """Whether ``--allow`` names all that it needs."""
        return all(rung.allowed_by in (allow or []) for rung in self.rungs if rung.allowed_by)


def places(settings: TuneSettings, blocks: int) -> Iterator[Place]:
    """Where to look: what was asked for, then deep before shallow, each base loaded anew last; what was given stays."""
    given = settings.model_fields_set
    bases = [(rung,) for rung in BASES if rung.setting not in given]
    bases = [(rung,) for (rung,) in bases if rung.setting != "base" or not settings.asks_more_of(rung.value)]
    shallow = "depth" not in given and not settings.rotate and settings.rule != "spt"
    depths = [(Rung("depth", depth, "depth"),) for depth in _halves(blocks) if shallow]
    by_hand = [(BY_HAND,)] if BY_HAND.setting not in given else []
    for rungs in [(), *depths, *by_hand, *bases]:
        yield Place(rungs)
    for base in bases:
        for depth in depths:
            yield Place((*base, *depth))


def loops(settings: TuneSettings, blocks: int) -> Iterator[tuple[Rung, ...]]:
    """Ways to make a step, none of them first; what was given stays."""
    yield ()
    if blocks and "recompute" not in settings.model_fields_set and settings.optimizer == "adamw":
        yield from ((rung,) for rung in LOOPS)


def micro_batches(settings: TuneSettings, loop: tuple[Rung, ...]) -> list[int | None]:
    """Rows at once, most first; None, the run as it is, only where nothing else spares memory."""
    if settings.micro_batch is not None:
        return [settings.micro_batch]
    sizes = [rows for rows in range(settings.batch_size, 0, -1) if settings.batch_size % rows == 0]
    spared = loop or settings.fit().sparing
    return [None, *sizes[1:]] if spared else [None, *sizes]


def allowable() -> list[str]:
    """What ``--allow`` can name."""
    return sorted({"depth", *(rung.allowed_by for rung in (*BASES, *LOOPS) if rung.allowed_by)})


def _halves(blocks: int) -> list[int]:
    """12 blocks: 6, 3, 1."""
    found = []
    while blocks > 1:
        blocks //= 2
        found.append(blocks)
    return found
