"""What each way of training would need, from steps of a few rows of the run's own data on its own model.

Bytes alive during a step rise by the same amount with every row, so small steps tell those of a large one, and time
does so nearly. What is measured is put back: the run that follows is the same to the bit.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from taskedge.backbone.blocks import blocks
from taskedge.profiling.process_memory import (
    TIGHT,
    give_back,
    hold,
    resident_bytes,
    return_freed_memory,
)
from taskedge.profiling.tensor_memory import LiveBytes, bytes_of
from taskedge.training import trainer as fit
from taskedge.training.memory.headroom import Room
from taskedge.training.memory.measure_step import Pace, Pass, Session, undisturbed
from taskedge.training.memory.options import Place, Rung, Way, loops, micro_batches, places
from taskedge.training.memory.step_cost import Cost, Line, Memory, longest_of
from taskedge.training.run import LOADED_BY, Run
from taskedge.training.tasks import Batch, Row

COMPILER = 120_000_000
"""Bytes that numba with its compiled kernels takes where it is not loaded yet (measured, Linux x86)."""

LOOP = 5_000_000
"""Bytes that the Trainer, its loader and its records take beside a step (measured, Linux x86)."""

BRIEF = 1.5
"""Seconds that a pass may take for one of more rows to follow: more rows tell more of a large pass."""


@dataclass(frozen=True)
class Group:
    """Ways that differ in the rows that pass at once only."""

    place: Place
    costs: list[Cost]


@dataclass(frozen=True)
class _Loop:
    """One way to make a step, measured at a few numbers of rows."""

    saved: Line
    peak: Line
    excess: int
    wall: Line
    cpu: Line
    optimiser: Pace
    resident: int
    """Of the process between its passes, what trains included."""
    compiled: int
    """Of that, what a compiler has taken that was loaded to measure other ways."""


class Ladder:
    """Measures a run's ways to train, group by group, as far as they are asked for.

    Args:
        run: its data are read and its base is loaded, if they were not.
        budget: bytes that the measuring itself stays within as well; None for no limit.
        on_group: told what is about to be measured.
    """

    def __init__(self, run: Run, budget: int | None = None, on_group: Callable[[str], None] = lambda _: None) -> None:
        assert fit  # the loop and all that it imports are there: part of the process, as they are when it trains
        return_freed_memory(TIGHT)
        self.run, self._on_group = run, on_group
        self._process: int | None = None
        run.data  # noqa: B018
        give_back()
        self._load(run)
        self._rows, self._held_out = run.rows, run.eval_rows
        self._lengths = [_length(row) for row in self._rows]
        self.room = Room(budget)
        self.loading = self.room.taken
        self.least = 0
        """Bytes that the smallest step may take, where the budget had no room to try it."""
        self.compiled = 0
        """Bytes that the compiler of the entries' kernel took when it was loaded here."""

    def groups(
        self, *, all_places: bool = False, go_on: Callable[[], bool] = lambda: True
    ) -> Generator[Group, None, None]:
        """The costs, cheapest first; places that change what is learnt last, and only with leave.

        With ``all_places`` also one rung at a time without leave, each with the plainest way to make a step.
        ``go_on`` is asked before each place.
        """
        settings, count = self.run.settings, len(blocks(self.run.base.model))
        for place in places(settings, count):
            allowed = Way(place.rungs, None).allowed(settings.allow)
            if not (allowed or (all_places and len(place.rungs) < 2)):
                continue
            if not go_on():
                return
            yield from self._groups_of(place, plainest=not allowed)

    def _groups_of(self, place: Place, *, plainest: bool) -> Generator[Group, None, None]:
        with ExitStack() as stack:
            changed = self._enter(place, stack)
            ways = list(loops(changed.settings, len(blocks(changed.base.model))))
            yield from self._groups_at(place, changed, ways[:1] if plainest else ways)

    def _enter(self, place: Place, stack: ExitStack) -> Run:
        """The run of that place; on leaving, the model is as it was. Never are two bases there at a time."""
        changed = self.run.changed(place.changes, say=lambda _: None)
        if LOADED_BY & place.changes.keys():
            self.run.forget_base()
            give_back()
            self._load(changed)

            def back() -> None:
                changed.forget_base()
                give_back()
                self._load(self.run)

            stack.callback(back)
        stack.enter_context(undisturbed(changed.base.model))
        return changed

    def _load(self, run: Run) -> None:
        """Loads the base, and notes what the idle process is then."""
        self._base = hold(run.base.model)
        give_back()
        if self._process is None:  # what later ones find is not that of a process that has done nothing
            self._process = max(0, resident_bytes() - self._base)

    def _groups_at(self, place: Place, run: Run, waiting: list[tuple[Rung, ...]]) -> Generator[Group, None, None]:
        alone = self._batch(1, max(self._lengths))
        count = max(len(blocks(run.base.model)), 1)
        with LiveBytes() as live, torch.no_grad():
            run.base.model(**alone)
        bounds = {True: live.peak + 3 * live.made // count, False: live.made}  # by whether blocks are recomputed
        selection, evaluation = self._selection(run), self._evaluation(run)
        session = Session(run, alone)
        if not self.least:
            self.room.take_note()
        try:
            least = resident_bytes() + min(bounds.values()) + LOOP
            self.least = min(self.least or least, least)
            while ready := [loop for loop in waiting if self.room.has(bounds[_forgets(loop)])]:
                waiting.remove(loop := ready[0])
                self._on_group(Way((*place.rungs, *loop), None).name)
                found = self._measure(session, loop, spared=True)
                if _forgets(loop):  # tells better what all blocks keep than what all of them make
                    inner = found.peak.at(1) - found.saved.at(1)
                    bounds[False] = min(bounds[False], round(found.saved.at(1) + inner * count))
                yield Group(place, self._costs(place, session, loop, found, selection, evaluation))
        finally:
            session.close()

    def _costs(
        self, place: Place, session: Session, loop: tuple[Rung, ...], found: _Loop,
        selection: Line | None, evaluation: Line | None,
    ) -> list[Cost]:  # fmt: skip
        run, costs = session.run, []
        for rows in micro_batches(run.settings, loop):
            way = Way((*place.rungs, *loop), rows)
            taking, measured, extra = run.changed(way.changes), found, 0
            if _compiles(taking):
                extra = 0 if "numba" in sys.modules else COMPILER
                if not extra or self.room.has(round(found.peak.at(run.settings.batch_size)) + extra):
                    measured = self._measure(session, loop, spared=False)
                    self.compiled += measured.resident - found.resident if extra else 0
                    extra = 0
            memory = self._memory(taking, session, measured, extra, selection, evaluation)
            costs.append(
                Cost(
                    way=way.name, changes=way.changes, exact=way.exact, allowed=way.allowed(run.settings.allow),
                    memory=memory, **self._time(taking, measured),
                )
            )  # fmt: skip
        return costs

    def _measure(self, session: Session, loop: tuple[Rung, ...], *, spared: bool) -> _Loop:
        """Passes of few rows, the fewest first, and no more than there is room for."""
        most, longest = session.run.settings.batch_size, max(self._lengths)
        changes: dict[str, Any] = {rung.setting: rung.value for rung in loop} | ({"micro_batch": 1} if spared else {})
        passes = list[tuple[int, Pass]]()
        for rows in (1, 2, 4):
            line = Line(tuple((at, one.peak) for at, one in passes))
            if passes and (rows > most or not self.room.has(round(line.at(rows)))):
                break
            start = time.perf_counter()
            passes.append((rows, session.held(self._batch(rows, longest), changes)))
            if rows > 1 and time.perf_counter() - start > BRIEF:
                break
        line = Line(tuple((at, one.peak) for at, one in passes))
        typical = longest_of(self._lengths, most)
        rows, paces = min(2, most), list[tuple[int, Pace]]()
        while not paces or (rows <= most and self.room.has(round(line.at(rows)))):
            paces.append((rows, session.pace(self._batch(rows, typical), changes)))
            rows *= 2
            if paces[-1][1].wall * 2 > BRIEF and len(paces) > 1:
                break
        optimiser = session.optimiser_pace()
        give_back()
        ends = paces if len(paces) < 2 else [paces[0], paces[-1]]
        return _Loop(
            saved=Line(tuple((at, one.saved) for at, one in passes)),
            peak=line,
            excess=max(one.excess for _, one in passes),
            wall=Line(tuple((at, pace.wall) for at, pace in ends)),
            cpu=Line(tuple((at, pace.cpu) for at, pace in ends)),
            optimiser=optimiser,
            resident=resident_bytes(),
            compiled=self.compiled,
        )

    def _memory(
        self, run: Run, session: Session, found: _Loop, extra: int,
        selection: Line | None, evaluation: Line | None,
    ) -> Memory:  # fmt: skip
        """The part of the run that has the peak, by kind."""
        rows, step_rows = run.settings.fit().passes[0], run.settings.batch_size * run.settings.accumulate
        inputs = round(bytes_of(self._batch(1, max(self._lengths)).values()) * (step_rows + rows))
        assert self._process is not None
        runtime = found.resident - self._process - self._base - session.state - session.copies + found.excess
        runtime += extra if _compiles(run) else -found.compiled  # as in a run that never loaded the compiler
        idle = {"process": self._process, "base": self._base, "runtime": max(0, runtime) + LOOP}
        trains = {"entries": session.state - session.head, "head": session.head}
        saved = round(found.saved.at(rows))
        nothing = {"entries": 0, "head": 0, "saved": 0}
        step = Memory(**idle, **trains, saved=saved + inputs, temporary=max(0, round(found.peak.at(rows)) - saved))
        parts = [step]
        if selection is not None:
            parts.append(
                Memory(**idle, **nothing, temporary=round(selection.at(run.selected_at_once)), part="selection")
            )
        if evaluation is not None:
            parts.append(Memory(**idle, **trains, saved=0, temporary=round(evaluation.at(rows)), part="evaluation"))
        rest = max(0, self.loading - self._process - self._base)
        parts.append(Memory(self._process, self._base, 0, **nothing, temporary=rest, part="loading"))
        return max(parts, key=lambda part: part.peak)

    def _time(self, run: Run, found: _Loop) -> dict[str, Any]:
        """Seconds of a step by either clock, and the steps of the run."""
        s, count = run.settings, len(self._rows)
        rows = s.fit().passes[0]
        of_epoch = math.ceil(count / (s.batch_size * s.accumulate))
        passes = count / rows / of_epoch
        share = longest_of(self._lengths, rows) / longest_of(self._lengths, s.batch_size)  # fewer rows, less padding
        return {
            "seconds": passes * found.wall.at(rows * share) + found.optimiser.wall,
            "cpu_seconds": passes * found.cpu.at(rows * share) + found.optimiser.cpu,
            "steps": math.ceil(of_epoch * s.epochs),
            "threads": torch.get_num_threads(),
        }

    def _selection(self, run: Run) -> Line | None:
        """Bytes that are alive at most while entries are chosen, by the rows of a calibration batch."""
        if run.settings.form == "lora":
            return None
        return self._alive(lambda rows: run.choose([self._batch(rows, max(self._lengths))]), len(self._rows))

    def _evaluation(self, run: Run) -> Line | None:
        """The same while the result is measured, by the rows that pass at once."""
        if not self._held_out:
            return None
        ordered = sorted(self._held_out, key=_length, reverse=True)
        task, base = run.task, run.base
        return self._alive(
            lambda rows: task.evaluate(base.model, base, ordered[:rows], rows, lambda _: None), len(ordered)
        )

    def _alive(self, work: Callable[[int], object], most: int) -> Line:
        points: list[tuple[float, float]] = []
        for rows in range(1, min(2, most) + 1):
            if points and not self.room.has(2 * round(points[0][1])):
                break
            with LiveBytes() as live:
                work(rows)
            points.append((rows, live.peak))
        return Line(tuple(points))

    def _batch(self, rows: int, length: float) -> Batch:
        """Rows of which the longest is the nearest to that length, the others shorter: so they need padding."""
        first = min(self._rows, key=lambda row: abs(_length(row) - length))
        others = sorted((row for row in self._rows if _length(row) <= _length(first)), key=_length)
        middle = others[len(others) // 2]
        return self.run.collate([first, *[middle] * (rows - 1)])


def _length(row: Row) -> int:
    """Tokens; 1 for an image, which all are of one size."""
    return len(row.get("input_ids", "1"))


def _forgets(loop: tuple[Rung, ...]) -> bool:
    return any(rung.value == "blocks" for rung in loop)


def _compiles(run: Run) -> bool:
    """Whether the run takes numba's kernel, and so its compiler."""
    return not run.settings.fit().sparing and run.settings.form != "lora" and find_spec("numba") is not None
