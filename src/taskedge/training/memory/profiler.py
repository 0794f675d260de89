"""Memory profiler: measures steps of a few rows and predicts the cost of every way to make a run.

The steps use the run's own rows and model. Everything that is measured is restored, so the run that follows has the
same bits.
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

# The training loop is imported for its size: the bytes of the process include all that a run imports.
import taskedge.training.trainer  # noqa: F401
from taskedge.backbone.blocks import blocks
from taskedge.profiling.process_memory import (
    TIGHT_THRESHOLD_BYTES,
    resident_bytes,
    return_freed_memory,
    touch_weights,
    trim_heap,
)
from taskedge.profiling.tensor_memory import LiveBytes, storage_bytes
from taskedge.training.memory.extrapolate import (
    LOOP_BYTES,
    CostLine,
    IdleMemory,
    StepMeasurement,
    Timing,
    TrainedMemory,
    expected_longest,
    predict_memory,
    predict_step_time,
    steps_of_epoch,
)
from taskedge.training.memory.headroom import MemoryHeadroom
from taskedge.training.memory.measure_phases import LossBytes, measure_evaluation, measure_selection
from taskedge.training.memory.measure_step import MeasurementSession, PassMemory, SampleBatches, model_restored
from taskedge.training.memory.options import MemoryOption
from taskedge.training.memory.search_space import (
    LoadConfig,
    StepConfig,
    iter_load_configs,
    iter_recompute_options,
    micro_batch_sizes,
)
from taskedge.training.memory.step_cost import ConfigCost
from taskedge.training.run import RELOADING_SETTINGS, Run
from taskedge.training.selection_settings import FORMS_OF_ENTRIES

COMPILER_BYTES = 120_000_000
"""Bytes that numba and its compiled kernels take in a process that has not loaded them (measured on Linux x86)."""

BRIEF_PASS_SECONDS = 1.5
"""A pass with more rows follows only if it takes less. More rows predict a large pass better."""

Options = tuple[MemoryOption, ...]


@dataclass(frozen=True)
class ConfigGroup:
    """Costs of configurations that share everything but the rows of a pass."""

    load: LoadConfig
    costs: list[ConfigCost]


@dataclass(frozen=True)
class _Measuring:
    """Everything that is open while the steps of one load configuration are measured."""

    load: LoadConfig
    session: MeasurementSession
    selection: CostLine | None
    evaluation: CostLine | None
    loss: LossBytes


class MemoryProfiler:
    """Measures the configurations of a run, group by group, as far as a caller iterates.

    Args:
        run: the run. Its data is read and its base is loaded if they were not.
        budget: bytes that the measurement stays within; None for no limit.
        on_group: called with the name of a group before it is measured.

    Attributes:
        headroom: memory that the budget leaves.
        min_step_bytes: resident set that the smallest step may need, for a budget without room to try it; 0 before
            the first estimate.
        compiler_bytes: bytes of the kernel compiler, if this measurement loaded it.
    """

    def __init__(self, run: Run, budget: int | None = None, on_group: Callable[[str], None] = lambda _: None) -> None:
        return_freed_memory(TIGHT_THRESHOLD_BYTES)
        self.run = run
        self._on_group = on_group
        self._process_bytes: int | None = None
        trim_heap()
        self._load(run)
        run.encode_rows()
        self.batches = SampleBatches(run)
        run.eval_rows()  # encoded now: configurations share them
        self.headroom = MemoryHeadroom(budget)
        self._loading_bytes = self.headroom.baseline_bytes
        self.min_step_bytes = 0
        self.compiler_bytes = 0

    def iter_groups(
        self, *, include_disallowed: bool = False, wants_more: Callable[[], bool] = lambda: True
    ) -> Generator[ConfigGroup, None, None]:
        """Yield the cost of configurations, cheapest load configuration first.

        Load configurations that change the result come last and only if ``--allow`` permits them.

        Args:
            include_disallowed: also measure each disallowed option alone, with the plainest step.
            wants_more: called before each load configuration; False ends the iteration.
        """
        settings, num_blocks = self.run.config, len(blocks(self.run.base.model))
        for load in iter_load_configs(settings, num_blocks):
            is_allowed = load.is_allowed(settings.allow)
            if not (is_allowed or (include_disallowed and len(load.options) < 2)):
                continue
            if not wants_more():
                return
            with ExitStack() as stack:
                changed = self._enter(load, stack)
                options = list(iter_recompute_options(changed.config, len(blocks(changed.base.model))))
                yield from self._measure_load(load, changed, options if is_allowed else options[:1])

    def _enter(self, load: LoadConfig, stack: ExitStack) -> Run:
        """Return the run with the overrides of ``load``. On exit the model is as before.

        There are never two bases in memory.
        """
        changed = self.run.with_config(load.changes, log=lambda _: None)
        if RELOADING_SETTINGS & load.changes.keys():
            self.run.release_base()
            trim_heap()
            self._load(changed)

            def reload() -> None:
                changed.release_base()
                trim_heap()
                self._load(self.run)

            stack.callback(reload)
        stack.enter_context(model_restored(changed.base.model))
        return changed

    def _load(self, run: Run) -> None:
        """Load the base. The first time, also note the bytes of the process without it."""
        run.load_base()
        self._base_bytes = touch_weights(run.base.model)
        trim_heap()
        if self._process_bytes is None:  # later the process also holds what measuring has left
            self._process_bytes = max(0, resident_bytes() - self._base_bytes)

    def _measure_load(self, load: LoadConfig, run: Run, waiting: list[Options]) -> Generator[ConfigGroup, None, None]:
        """Measure the steps of one load configuration that the headroom permits, in the given order."""
        one_row = self.batches.batch(1, self.batches.longest)
        num_blocks = max(len(blocks(run.base.model)), 1)
        with LiveBytes() as live, torch.no_grad():
            run.base.model(**one_row)
        max_bytes_recomputed = live.peak + 3 * live.allocated // num_blocks
        max_bytes_kept = live.allocated
        selection = measure_selection(run, self.batches, self.headroom)
        evaluation = measure_evaluation(run, self.headroom)
        session = MeasurementSession(run, one_row)
        if not self.min_step_bytes:
            self.headroom.set_baseline()
        measuring = _Measuring(load, session, selection, evaluation, LossBytes(run))
        try:
            smallest = resident_bytes() + min(max_bytes_recomputed, max_bytes_kept) + LOOP_BYTES
            self.min_step_bytes = min(self.min_step_bytes or smallest, smallest)
            while True:
                ready = [
                    options
                    for options in waiting
                    if self.headroom.fits(max_bytes_recomputed if _recomputes_blocks(options) else max_bytes_kept)
                ]
                if not ready:
                    return
                options = ready[0]
                waiting.remove(options)
                self._on_group(StepConfig((*load.options, *options), None).name)
                measured = self._measure(session, options, low_memory=True)
                if _recomputes_blocks(options):
                    # a better bound on what all blocks keep than everything that they allocate
                    within_block = measured.peak.at(1) - measured.saved.at(1)
                    max_bytes_kept = min(max_bytes_kept, round(measured.saved.at(1) + within_block * num_blocks))
                yield ConfigGroup(load, self._costs(measuring, options, measured))
        finally:
            session.close()

    def _costs(self, measuring: _Measuring, options: Options, measured: StepMeasurement) -> list[ConfigCost]:
        """Predict the cost for every number of rows per pass."""
        session = measuring.session
        run, costs = session.run, []
        for micro_batch in micro_batch_sizes(run.config, options):
            config = StepConfig((*measuring.load.options, *options), micro_batch)
            changed, own, compiler_bytes = run.with_config(config.changes), measured, 0
            if _uses_compiler(changed):
                compiler_bytes = 0 if "numba" in sys.modules else COMPILER_BYTES
                largest = round(measured.peak.at(run.config.batch_size)) + compiler_bytes
                if not compiler_bytes or self.headroom.fits(largest):
                    own = self._measure(session, options, low_memory=False)
                    if compiler_bytes:
                        self.compiler_bytes += own.resident - measured.resident
                    compiler_bytes = 0
            else:
                compiler_bytes = -own.compiler  # as in a run that never loads the compiler
            costs.append(self._predict(changed, config, measuring, own, compiler_bytes))
        return costs

    def _predict(
        self, run: Run, config: StepConfig, measuring: _Measuring, measured: StepMeasurement, compiler_bytes: int
    ) -> ConfigCost:
        settings, session = run.config, measuring.session
        rows, lengths = settings.trainer_config().rows_per_pass, self.batches.lengths
        step_rows = settings.batch_size * settings.accumulate
        row_bytes = storage_bytes(self.batches.batch(1, self.batches.longest).values())
        assert self._process_bytes is not None
        memory = predict_memory(
            measured,
            IdleMemory(self._process_bytes, self._base_bytes, self._loading_bytes),
            TrainedMemory(session.state, session.head, session.backup_bytes),
            rows=rows,
            input_bytes=round(row_bytes * (step_rows + rows)),
            compiler_bytes=compiler_bytes,
            selection_bytes=self._selection_bytes(measuring, run),
            evaluation_bytes=_rounded(measuring.evaluation, rows, measuring.loss.at(rows)),
            loss_bytes=measuring.loss.at(rows),
        )
        time = predict_step_time(
            measured, lengths, rows=rows, batch_size=settings.batch_size, accumulate=settings.accumulate
        )
        epoch_steps = steps_of_epoch(len(lengths), settings.batch_size, settings.accumulate)
        return ConfigCost(
            config=config.name,
            changes=config.changes,
            exact=config.is_exact,
            allowed=config.is_allowed(settings.allow),
            memory=memory,
            seconds=time.wall,
            cpu_seconds=time.cpu,
            steps=math.ceil(epoch_steps * settings.epochs),
            threads=torch.get_num_threads(),
        )

    @staticmethod
    def _selection_bytes(measuring: _Measuring, run: Run) -> int | None:
        rows = run.rows_per_calibration_batch
        loss = measuring.loss.at(rows)
        if not run.config.needs_gradients:
            return _rounded(measuring.selection, rows, loss)
        kept = _rounded(measuring.selection, rows)  # activations are there while the loss is computed
        return None if kept is None else kept + loss

    def _measure(self, session: MeasurementSession, options: Options, *, low_memory: bool) -> StepMeasurement:
        """Measure passes of few rows, fewest first, as far as the headroom permits."""
        max_rows = session.run.config.batch_size
        changes: dict[str, Any] = {option.setting: option.value for option in options}
        if low_memory:
            changes["micro_batch"] = 1
        passes = self._measure_memory(session, changes, max_rows)
        peak = CostLine(tuple((rows, memory.peak) for rows, memory in passes))
        timings = self._measure_time(session, changes, max_rows, peak)
        optimizer = session.measure_optimizer_time()
        trim_heap()
        return StepMeasurement(
            saved=CostLine(tuple((rows, memory.saved) for rows, memory in passes)),
            peak=peak,
            excess=max(memory.excess for _, memory in passes),
            wall=CostLine(tuple((rows, timing.wall) for rows, timing in timings)),
            cpu=CostLine(tuple((rows, timing.cpu) for rows, timing in timings)),
            optimizer=optimizer,
            resident=resident_bytes(),
            compiler=self.compiler_bytes,
        )

    def _measure_memory(
        self, session: MeasurementSession, changes: dict[str, Any], max_rows: int
    ) -> list[tuple[int, PassMemory]]:
        """Return the bytes of passes of 1, 2 and 4 of the longest rows."""
        passes: list[tuple[int, PassMemory]] = []
        for rows in (1, 2, 4):
            if passes:
                line = CostLine(tuple((earlier, memory.peak) for earlier, memory in passes))
                if rows > max_rows or not self.headroom.fits(round(line.at(rows))):
                    break
            start = time.perf_counter()
            passes.append((rows, session.measure_memory(self.batches.batch(rows, self.batches.longest), changes)))
            if rows > 1 and time.perf_counter() - start > BRIEF_PASS_SECONDS:
                break
        return passes

    def _measure_time(
        self, session: MeasurementSession, changes: dict[str, Any], max_rows: int, peak: CostLine
    ) -> list[tuple[int, Timing]]:
        """Return the time of the smallest and the largest pass of rows of typical length."""
        typical = expected_longest(self.batches.lengths, max_rows)
        timings: list[tuple[int, Timing]] = []
        rows = min(2, max_rows)
        while not timings or (rows <= max_rows and self.headroom.fits(round(peak.at(rows)))):
            timings.append((rows, session.measure_time(self.batches.batch(rows, typical), changes)))
            rows *= 2
            if timings[-1][1].wall * 2 > BRIEF_PASS_SECONDS and len(timings) > 1:
                break
        return timings if len(timings) < 2 else [timings[0], timings[-1]]


def _recomputes_blocks(options: Options) -> bool:
    return any(option.value == "blocks" for option in options)


def _rounded(line: CostLine | None, rows: int, at_least: int = 0) -> int | None:
    return None if line is None else max(at_least, round(line.at(rows)))


def _uses_compiler(run: Run) -> bool:
    """Return whether the run uses numba's kernel, and so its compiler."""
    settings = run.config
    has_entries = settings.form in FORMS_OF_ENTRIES
    return has_entries and not settings.trainer_config().low_memory and find_spec("numba") is not None
