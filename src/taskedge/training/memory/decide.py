"""``within``: the fastest way of a run that stays within its memory budget; or why there is none."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from taskedge.errors import DoesNotFit
from taskedge.profiling.byte_size import show_bytes
from taskedge.training.memory.options import allowable
from taskedge.training.memory.profiler import Ladder
from taskedge.training.memory.step_cost import MARGIN_BYTES, Cost
from taskedge.training.run import Run
from taskedge.training.tasks import Say

WORTH = 1.2
"""A way whose step takes at most so many times that of the fastest needs no slower ones to be looked at: recomputing
costs a third of a step or so."""

ALIKE = 1.05
"""Times of which neither is faster."""

SLACK = 10_000_000
"""Bytes that a refusal names above the least: two measurements of one way differ by up to so many, and the budget that
is named must do."""


@dataclass(frozen=True)
class Estimate:
    """What was found out before the first step."""

    budget: int | None
    chosen: Cost | None
    """None where there was no budget to choose by, or nothing fits."""
    costs: list[Cost]
    """Of every way that was looked at."""
    allow: list[str]
    """What ``--allow`` names."""

    def required(self) -> Estimate:
        """Itself.

        Raises:
            DoesNotFit: there is a budget, and no way that stays within; names the least budget that would do.
        """
        if self.budget is not None and self.chosen is None:
            raise _nothing_fits(self.budget, [cost for cost in self.costs if cost.allowed], self.allow)
        return self

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "budget": self.budget,
            "chosen": None if self.chosen is None else self.chosen.as_json(),
            "ladder": [cost.as_json() for cost in self.costs],
        }


def within(run: Run, say: Say) -> tuple[Run, Estimate]:
    """The run on the fastest way within its ``memory`` setting, its base loaded; measures no more ways than it must.

    Raises:
        DoesNotFit: no way that is allowed does; the message names the least budget that would do.
    """
    budget = run.settings.memory_bytes
    assert budget is not None
    say(f"looking for the fastest way to train within {show_bytes(budget)}")
    ladder = Ladder(run, budget, lambda name: say(f"measuring: {name}"))
    costs: list[Cost] = []
    chosen: Cost | None = None
    # what changes what is learnt is looked at only where nothing else fits
    with closing(ladder.groups(go_on=lambda: chosen is None)) as groups:
        for group in groups:
            costs += group.costs
            chosen = fastest(cost for cost in costs if cost.needed <= budget)
            if chosen is not None and chosen.work <= WORTH * min(cost.work for cost in costs):
                break
    allow = run.settings.allow or []
    if chosen is None and not costs:
        needed = round(max(ladder.least, ladder.room.reached) + MARGIN_BYTES + SLACK)
        raise DoesNotFit(needed, _refusal(budget, needed, "not even a step of one row would, it seems"))
    if chosen is not None and chosen.changes and ladder.compiled:  # it was loaded to be measured, and stays
        costs = [_with_compiler(cost, ladder.compiled) for cost in costs]
        chosen = fastest(cost for cost in costs if cost.needed <= budget)
    if chosen is None or ladder.room.reached > budget:
        raise _nothing_fits(budget, costs, allow, ladder.room.reached)
    if "dtype" in chosen.changes:
        run.forget_base()  # another is loaded in its place
    return run.changed(chosen.changes), Estimate(budget, chosen, costs, allow)


def ladder_of(run: Run, say: Say) -> Estimate:
    """Every way there is with its cost, those that are not allowed too; and the one that ``memory`` would choose."""
    budget = run.settings.memory_bytes
    ladder = Ladder(run, None, lambda name: say(f"measuring: {name}"))
    costs = [cost for group in ladder.groups(all_places=True) for cost in group.costs]
    fitting = [cost for cost in costs if budget is not None and cost.allowed and cost.needed <= budget]
    chosen = fastest(cost for cost in fitting if cost.exact) or fastest(fitting)
    return Estimate(budget, chosen, costs, run.settings.allow or [])


def fastest(costs: Iterable[Cost]) -> Cost | None:
    """The first of those that are as fast as the fastest, by as little as two measurements of one way may differ."""
    found = list(costs)
    least = min((cost.work for cost in found), default=0.0)
    return next((cost for cost in found if cost.work <= ALIKE * least), None)


def _with_compiler(cost: Cost, size: int) -> Cost:
    """The cost in a process that holds the compiler; a run that is as it was asked for holds it anyway."""
    if not cost.changes:
        return cost
    return replace(cost, memory=replace(cost.memory, runtime=cost.memory.runtime + size))


def _nothing_fits(budget: int, costs: list[Cost], allow: list[str], reached: int = 0) -> DoesNotFit:
    """The error, with the nearest budget that would do; ``reached``: bytes that finding it out took."""
    least = min(costs, key=lambda cost: cost.needed)
    why = f"the least is {least.way!r}, whose {least.memory.part} has a peak of {show_bytes(least.memory.peak)}"
    if reached > max(least.needed, budget):
        why = f"to load the model and to try a few rows took {show_bytes(reached)} already"
    missing = [name for name in allowable() if name not in allow]
    hint = "".join(f" --allow {name}" for name in missing)
    more = f"; or allow what changes the result a little:{hint}" if missing else ""
    needed = max(least.needed, reached) + SLACK
    return DoesNotFit(needed, _refusal(budget, needed, why) + more)


def _refusal(budget: int, needed: int, why: str) -> str:
    return f"--memory {budget / 1e6:.0f}MB: nothing fits: {why}: give --memory {-(-needed // 10**6)}MB"
