"""A small search over learning rates by held-out loss: short runs of all, longer ones of the best.

Successive halving. In each rung, every pair of rates that is left trains for a share of the epochs, with the whole
schedule of the rate; the best ``1/eta`` of them go to the next rung, with ``eta`` times the epochs. The last rung has
all epochs, and its best file is the result. A pair that diverges is left out.

With a budget, a run starts only if it fits, beside one run in each later rung. What does not fit is not tried.

Source: Jamieson and Talwalkar, arXiv 1502.07943.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskedge.delta.file import load
from taskedge.errors import InputError, TrainingDiverged
from taskedge.io.atomic import move_atomic, require_writable, write_atomic
from taskedge.io.lock import hold_lock
from taskedge.training.config import changes_text
from taskedge.training.run import prepare_run
from taskedge.training.search_budget import SearchBudget
from taskedge.training.tasks import Log
from taskedge.training.trainer import num_steps
from taskedge.training.tune import tune
from taskedge.training.tune_config import TuneConfig
from taskedge.training.tune_folder import is_interrupted, run_folder

FORMAT, STATE_FILE = "taskedge-search/1", "search.json"
ONLY_AT_THE_END = 10**9
"""Steps between evaluations if none are given: the last step has one in any case."""

Trial = dict[str, Any]


def search_rates(
    config: TuneConfig,
    rates: Sequence[float],
    head_rates: Sequence[float],
    *,
    eta: int = 3,
    rungs: int = 2,
    budget: SearchBudget = SearchBudget(),  # noqa: B008  # it is frozen
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    log: Log = print,
) -> list[Trial]:
    """Search and write the best delta to ``config.out``; return the trials, those of the last rung first, best first.

    An interrupted search leaves the folder ``OUT.search``. With ``resume`` it continues, within the run that was
    interrupted.

    Args:
        config: settings of the runs, with held-out data. Its rates have no effect.
        rates, head_rates: peak rates of the entries and of the head; every pair of them is tried.
        eta: the best ``1/eta`` of a rung are tried further.
        rungs: number of rungs.
        budget: the most that all runs may cost. A resumed search may have another one.
        resume: continue an interrupted search.
        force: replace the output and an interrupted search.
        progress: show progress lines on standard error.
        log: called with status lines.

    Raises:
        InputError: there is no held-out data; the budget is too small for one pair; the output or an interrupted search
            exists (and neither ``resume`` nor ``force``); there is none (and ``resume``), or it had other settings.
        TrainingDiverged: every pair diverged.
    """
    if config.validation is None and config.eval is None:
        raise InputError("a search needs held-out data: give --validation 10%, --validation FILE or --eval FILE")
    folder = search_folder(config.out)
    require_writable(config.out)
    epochs = [config.epochs / eta ** (rungs - 1 - rung) for rung in range(rungs)]
    steps = _steps(config, epochs) if budget != SearchBudget() else [0] * rungs
    budget.check(sum(steps), rungs)
    with hold_lock(config.out), hold_lock(folder):
        state = _begin(config, folder, rates, head_rates, eta, rungs, resume=resume, force=force)
        pairs = list(itertools.product(rates, head_rates))
        reached = 0
        for rung in range(rungs):
            log(f"rung {rung + 1} of {rungs}: {len(pairs)} pairs of rates, {epochs[rung]:g} epochs each")
            trials = list[Trial]()
            for pair in pairs:
                if _recorded(state, rung, pair) is None and not budget.fits(
                    state["trials"], state.get("lost_seconds", 0.0), sum(steps[rung:])
                ):
                    break
                trials.append(
                    _trial(config, folder, state, rung, (epochs[rung], steps[rung]), pair, progress=progress, log=log)
                )
            if len(trials) < len(pairs):
                log(f"budget of {budget}: {len(pairs) - len(trials)} of {len(pairs)} pairs are not tried in this rung")
            if not trials:
                break
            finite = [trial for trial in trials if trial["held_out_loss"] is not None]
            if not finite:
                raise TrainingDiverged("every pair of rates diverged: give lower --rates")
            finite.sort(key=lambda trial: float(trial["held_out_loss"]))
            pairs = [(trial["lr"], trial["head_lr"]) for trial in finite[: math.ceil(len(trials) / eta)]]
            reached = rung
        if reached + 1 < rungs:
            log(f"the budget ended before rung {reached + 2}: the best run of {epochs[reached]:g} epochs is written")
        move_atomic(_out(folder, reached, pairs[0]), config.out)
        shutil.rmtree(folder, ignore_errors=True)
    done: list[Trial] = state["trials"]
    return sorted(
        done, key=lambda one: (-one["rung"], math.inf if one["held_out_loss"] is None else one["held_out_loss"])
    )


def search_folder(out: Path) -> Path:
    """Return the folder of a search that is under way, beside its output."""
    return out.with_name(f"{out.name}.search")


def _steps(config: TuneConfig, epochs: Sequence[float]) -> list[int]:
    """Return the optimizer steps of a run of each number of epochs."""
    run = prepare_run(config, lambda _: None)
    rows = len(run.data.train) if run.data.parts is None else len(run.data.parts[0])
    settings = [run.config.model_copy(update={"epochs": one}).trainer_config() for one in epochs]
    return [num_steps(rows, one) for one in settings]


def _begin(
    config: TuneConfig,
    folder: Path,
    rates: Sequence[float],
    head_rates: Sequence[float],
    eta: int,
    rungs: int,
    *,
    resume: bool,
    force: bool,
) -> dict[str, Any]:
    """Return the state of the interrupted search, or of a new one, whose folder is made."""
    settings = json.loads(config.model_dump_json(exclude={"out", "log", "lr", "head_lr"}))
    settings |= {"rates": list(rates), "head_rates": list(head_rates), "eta": eta, "rungs": rungs}
    path = folder / STATE_FILE
    if resume:
        if not path.exists():
            raise InputError(f"there is no interrupted search {folder}: correct --out, or start without --resume")
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if changed := changes_text(state["settings"], settings):
            raise InputError(f"the interrupted search had other settings: {changed}: resume it with those")
        return state
    if config.out.exists() and not force:
        raise InputError(f"{config.out} exists: name another file with --out, or replace it with --force")
    if path.exists() and not force:
        raise InputError(f"{folder} holds an interrupted search: continue it with --resume, or start anew with --force")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    state = {"format": FORMAT, "settings": settings, "trials": []}
    write_atomic(path, json.dumps(state, indent=1).encode())
    return state


def _trial(
    config: TuneConfig,
    folder: Path,
    state: dict[str, Any],
    rung: int,
    length: tuple[float, int],
    pair: tuple[float, float],
    *,
    progress: bool,
    log: Log,
) -> Trial:
    """Return the trial of a pair in a rung: the recorded one, or a run (epochs, steps) that is made or resumed."""
    lr, head_lr = pair
    if (recorded := _recorded(state, rung, pair)) is not None:
        return recorded
    (epochs, steps), begin = length, time.monotonic()
    out = _out(folder, rung, pair)
    given = config.model_dump(exclude_unset=True) | {"lr": lr, "head_lr": head_lr, "epochs": epochs, "out": out}
    made = TuneConfig(**{"eval_every": ONLY_AT_THE_END, **given})
    trial = {"rung": rung, "epochs": epochs, "lr": lr, "head_lr": head_lr, "held_out_loss": None, "steps": 0}
    trial["spent_steps"] = steps  # also of a run that diverges
    try:
        resumes = is_interrupted(run_folder(made))
        result = tune(made, resume=resumes, force=not resumes, progress=progress, log=lambda _: None)
        trial |= {"steps": result.steps, "spent_steps": result.steps}
        trial |= {"held_out_loss": load(out).provenance.training["held_out_loss"]}
    except TrainingDiverged as error:
        log(f"learning rate {lr:g}, of the head {head_lr:g}: {error}")
        shutil.rmtree(run_folder(made), ignore_errors=True)
    except BaseException:
        state["lost_seconds"] = state.get("lost_seconds", 0.0) + time.monotonic() - begin
        write_atomic(folder / STATE_FILE, json.dumps(state, indent=1).encode())
        raise
    else:
        log(f"learning rate {lr:g}, of the head {head_lr:g}: held-out loss {trial['held_out_loss']:.4f}")
    state["trials"].append(trial | {"seconds": time.monotonic() - begin})
    write_atomic(folder / STATE_FILE, json.dumps(state, indent=1).encode())
    return trial


def _recorded(state: dict[str, Any], rung: int, pair: tuple[float, float]) -> Trial | None:
    """Return the finished trial of a pair in a rung; None if there is none."""
    for trial in state["trials"]:
        if (trial["rung"], trial["lr"], trial["head_lr"]) == (rung, *pair):
            return dict(trial)
    return None


def _out(folder: Path, rung: int, pair: tuple[float, float]) -> Path:
    return folder / f"rung{rung}-lr{pair[0]:g}-head{pair[1]:g}.safetensors"
