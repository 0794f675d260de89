"""Choice of the fastest configuration whose predicted memory stays within the budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from taskedge.errors import DoesNotFit
from taskedge.profiling.byte_size import format_bytes
from taskedge.training.memory.options import allowable_options
from taskedge.training.memory.profiler import MemoryProfiler
from taskedge.training.memory.step_cost import MARGIN_BYTES, ConfigCost
from taskedge.training.run import RELOADING_SETTINGS, Run

GOOD_ENOUGH_RATIO = 1.2
"""A configuration whose step takes at most this many times that of the fastest ends the search.

Recomputing, which comes next, costs about a third of a step.
"""

TIE_RATIO = 1.05
"""Step times within this ratio count as equal."""

REFUSAL_MARGIN_BYTES = 10_000_000
"""Bytes that a refusal adds to the smallest budget, so that a run with the named budget is accepted.

Two measurements of one configuration differ by up to this much.
"""


@dataclass(frozen=True)
class BudgetDecision:
    """Result of the search.

    Attributes:
        budget: bytes; None if there is no budget.
        chosen: the configuration to run; None without a budget, or if none fits.
        costs: every configuration that was measured.
        allow: the values of ``--allow``.
    """

    budget: int | None
    chosen: ConfigCost | None
    costs: list[ConfigCost]
    allow: list[str]

    def required(self) -> BudgetDecision:
        """Return self.

        Raises:
            DoesNotFit: a budget is given and no configuration fits. The message names the smallest sufficient budget.
        """
        if self.budget is not None and self.chosen is None:
            raise _nothing_fits(self.budget, [cost for cost in self.costs if cost.allowed], self.allow)
        return self

    def as_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "budget": self.budget,
            "chosen": None if self.chosen is None else self.chosen.as_json(),
            "costs": [cost.as_json() for cost in self.costs],
        }


def choose_within_budget(run: Run, log: Callable[[str], None]) -> tuple[Run, BudgetDecision]:
    """Return the run in its fastest configuration within the ``memory`` setting, with its base loaded.

    Configurations are measured until one is good enough.

    Raises:
        DoesNotFit: no allowed configuration fits. The message names the smallest sufficient budget.
    """
    budget = run.config.memory_bytes
    assert budget is not None
    log(f"looking for the fastest configuration within {format_bytes(budget)}")
    profiler = MemoryProfiler(run, budget, lambda name: log(f"measuring: {name}"))
    costs: list[ConfigCost] = []
    chosen: ConfigCost | None = None
    # options that change the result are measured only if nothing else fits
    with closing(profiler.iter_groups(wants_more=lambda: chosen is None)) as groups:
        for group in groups:
            costs += group.costs
            chosen = fastest(cost for cost in costs if cost.needed <= budget)
            if chosen is not None and chosen.work <= GOOD_ENOUGH_RATIO * min(cost.work for cost in costs):
                break
    allow = run.config.allow or []
    peak_bytes = profiler.headroom.peak_bytes
    if chosen is None and not costs:
        needed = round(max(profiler.min_step_bytes, peak_bytes) + MARGIN_BYTES + REFUSAL_MARGIN_BYTES)
        raise DoesNotFit(needed, _refusal(budget, needed, "a step of one row is predicted to need more"))
    if chosen is not None and chosen.changes and profiler.compiler_bytes:  # loaded to be measured, and it stays
        costs = [_with_compiler(cost, profiler.compiler_bytes) for cost in costs]
        chosen = fastest(cost for cost in costs if cost.needed <= budget)
    if chosen is None or peak_bytes > budget:
        raise _nothing_fits(budget, costs, allow, peak_bytes)
    if RELOADING_SETTINGS & chosen.changes.keys():
        run.release_base()  # another one is loaded in its place
    return run.with_config(chosen.changes), BudgetDecision(budget, chosen, costs, allow)


def profile_all_options(run: Run, log: Callable[[str], None]) -> BudgetDecision:
    """Measure every configuration, disallowed ones included, and choose one if there is a ``memory`` setting."""
    budget = run.config.memory_bytes
    profiler = MemoryProfiler(run, None, lambda name: log(f"measuring: {name}"))
    costs = [cost for group in profiler.iter_groups(include_disallowed=True) for cost in group.costs]
    fitting = [cost for cost in costs if budget is not None and cost.allowed and cost.needed <= budget]
    chosen = fastest(cost for cost in fitting if cost.exact) or fastest(fitting)
    return BudgetDecision(budget, chosen, costs, run.config.allow or [])


def fastest(costs: Iterable[ConfigCost]) -> ConfigCost | None:
    """Return the first cost whose time ties with the smallest; None if there are no costs."""
    candidates = list(costs)
    smallest = min((cost.work for cost in candidates), default=0.0)
    return next((cost for cost in candidates if cost.work <= TIE_RATIO * smallest), None)


def _with_compiler(cost: ConfigCost, num_bytes: int) -> ConfigCost:
    """Return the cost in a process that has loaded the compiler, which the unchanged run loads in any case."""
    if not cost.changes:
        return cost
    return replace(cost, memory=replace(cost.memory, runtime=cost.memory.runtime + num_bytes))


def _nothing_fits(budget: int, costs: list[ConfigCost], allow: list[str], peak_bytes: int = 0) -> DoesNotFit:
    """Return the error with the smallest sufficient budget; ``peak_bytes`` is the peak of the measurement."""
    smallest = min(costs, key=lambda cost: cost.needed)
    reason = (
        f"the smallest is {smallest.config!r}, whose {smallest.memory.part} has a peak of "
        f"{format_bytes(smallest.memory.peak)}"
    )
    if peak_bytes > max(smallest.needed, budget):
        reason = f"loading the model and trying a few rows took {format_bytes(peak_bytes)} already"
    missing = [name for name in allowable_options() if name not in allow]
    flags = "".join(f" --allow {name}" for name in missing)
    hint = f"; or allow options that change the result a little:{flags}" if missing else ""
    needed = max(smallest.needed, peak_bytes) + REFUSAL_MARGIN_BYTES
    return DoesNotFit(needed, _refusal(budget, needed, reason) + hint)


def _refusal(budget: int, needed: int, reason: str) -> str:
    return f"--memory {budget / 1e6:.0f}MB: nothing fits: {reason}: give --memory {-(-needed // 10**6)}MB"
