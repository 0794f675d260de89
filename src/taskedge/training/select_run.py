"""``select``: from a base and data to a support file, with which other machines train."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taskedge.backbone.coverage import log_coverage
from taskedge.errors import InputError
from taskedge.io.atomic import write_atomic
from taskedge.profiling.process_memory import lifetime_peak_bytes
from taskedge.selection.support import Support, load_support
from taskedge.selection.support_file import write_support_file
from taskedge.training.find_support import find_in_steps
from taskedge.training.run import Run, prepare_run
from taskedge.training.selection_settings import FORMS_OF_ENTRIES
from taskedge.training.tasks import Log
from taskedge.training.tune_config import TuneConfig
from taskedge.training.tune_folder import (
    SETTINGS_FILE,
    SUPPORT_FILE,
    hold_locks,
    identity_changes,
    is_interrupted,
    run_identity,
)


@dataclass(frozen=True)
class SelectResult:
    """Outcome of :func:`select_to_file`.

    Attributes:
        out: the support file.
        rule, allocation, budget: how the entries were selected.
        entries: number of chosen entries.
        share: trained parameters without the head over those of the model.
        linears: linears that train entries or a low-rank product.
        stored_columns: input columns that training stores.
        seconds: duration, with loading the base.
        peak_memory: bytes: the largest resident set of the process so far.
        file_bytes: size of the file.
        text: the support in a line.
    """

    out: Path
    rule: str
    allocation: str
    budget: str
    entries: int
    share: float
    linears: int
    stored_columns: int
    seconds: float
    peak_memory: int
    file_bytes: int
    text: str

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"out": str(self.out)}


def select_to_file(
    config: TuneConfig,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    log: Log = print,
) -> SelectResult:
    """Select the weights that ``tune`` with the same settings would train, and write them to a support file.

    A selection by gates that is interrupted leaves the folder ``OUT.run``. With ``resume`` it continues, to the same
    bytes.

    Args:
        config: settings of a run of ``tune``; those about training have no effect.
        out: the file to write; it is replaced.
        resume: continue an interrupted selection by gates.
        force: discard an interrupted selection, or an interrupted run of ``tune`` with this output.
        progress: show a progress line on standard error.
        log: called with status lines.

    Raises:
        InputError, BudgetError: as ``tune`` would; the form selects nothing; a support file is given; another process
            works on ``out``; there is nothing to resume, or it had other settings; an interrupted selection or run
            exists (and neither ``resume`` nor ``force``).
        TrainingDiverged: the loss of a selection by gates is not a finite number.
    """
    if config.form not in FORMS_OF_ENTRIES:
        raise InputError(f"the form {config.form!r} selects nothing; those that do: {', '.join(FORMS_OF_ENTRIES)}")
    if config.support_file is not None:
        raise InputError(f"{config.support_file} holds a support already: leave out --support-file")
    if config.from_delta is not None:
        raise InputError(f"{config.from_delta} has its entries already: leave out --from-delta")
    begin = time.monotonic()
    folder = out.with_name(f"{out.name}.run")
    if resume and not is_interrupted(folder):
        raise InputError(f"there is no interrupted selection {folder}: correct --out, or start without --resume")
    with hold_locks(out, folder):
        if is_interrupted(folder) and not (resume or force):
            raise InputError(
                f"{folder} holds an interrupted selection or run: continue it with --resume, or start anew with --force"
            )
        run = prepare_run(config, log)
        if resume and (changed := identity_changes(folder, run_identity(run))):
            raise InputError(
                f"the interrupted selection had other settings: {changed}: resume it with those, or start anew "
                "with --force"
            )
        run.load()
        log_coverage(run.base.model, log)
        run.check_forward()
        run.warm_head()
        support = run.select() if config.support == "rule" else _find(run, folder, resume=resume, progress=progress)
        write_support_file(support, out, run.base.model, _about(run))
    if config.support != "rule" or is_interrupted(folder):
        shutil.rmtree(folder, ignore_errors=True)
    return SelectResult(
        out=out,
        rule=support.rule,
        allocation=support.allocation,
        budget=support.budget,
        entries=support.num_entries,
        share=support.share,
        linears=len(support.linears) + len(support.low_rank),
        stored_columns=support.stored_columns,
        seconds=time.monotonic() - begin,
        peak_memory=lifetime_peak_bytes(next(run.base.model.parameters()).device),
        file_bytes=out.stat().st_size,
        text=str(support),
    )


def _find(run: Run, folder: Path, *, resume: bool, progress: bool) -> Support:
    """Return the support that gates find, with checkpoints in ``folder``, which holds the settings as well."""
    if resume and (folder / SUPPORT_FILE).exists():
        return load_support(folder / SUPPORT_FILE)
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_atomic(folder / SETTINGS_FILE, json.dumps(run_identity(run), indent=1).encode())
    return find_in_steps(run, folder, SUPPORT_FILE, resume=resume, progress=progress)


def _about(run: Run) -> dict[str, Any]:
    """Return what a support file states about where it was found."""
    return {"base": run.config.model, "task": run.task.name, "labels": list(run.task.labels), "rows": len(run.rows)}
