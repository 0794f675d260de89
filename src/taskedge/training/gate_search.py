"""Search of the penalty on gates: runs with different ones, until the expected number of open gates suits a budget.

Source: this project. Diff pruning (arXiv 2012.07463) chooses the penalty by hand.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from taskedge.io.atomic import write_atomic
from taskedge.selection.support import Support, load_support, save_support
from taskedge.training.gates import GateConfig

TARGET = (1.0, 2.0)
"""Wanted share of open gates, in budgets: a little above it, since the largest changes among these are kept."""
STEP = 4.0
"""Factor between two penalties while all shares lie on one side of the target."""
_TRIES = "tries.json"


def search_penalty(
    find: Callable[[GateConfig, Path], Support],
    gates: GateConfig,
    share: float,
    tries: int,
    folder: Path,
    log: Callable[[str], None] = lambda _: None,
) -> Support:
    """Return the support of the first penalty whose expected share of open gates is one to two times a share.

    Finished tries are kept in ``folder``, so that an interrupted search repeats none of them.

    Args:
        find: trains gates with these settings and checkpoints in this folder, and returns a support whose settings have
            the ``expected_share``.
        gates: settings, with the penalty to begin with.
        share: of the model's parameters: the budget.
        tries: largest number of penalties; 1 is no search.
        folder: for tries and their checkpoints.
        log: called with a line for each try.

    Returns:
        The support; if no share is as wanted, that of the nearest one, and the line that says so has the numbers.
    """
    if tries == 1:
        return find(gates, folder)
    known: list[tuple[float, float]] = []
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / _TRIES
    if record.exists():
        known = [(penalty, found) for penalty, found in json.loads(record.read_text())]
    while not (known and _distance(known[-1][1], share) == 0) and len(known) < tries:
        penalty, index = next_penalty(known, share, gates.penalty), len(known)
        support = find(replace(gates, penalty=penalty), folder / f"try-{index}")
        save_support(support, _file(folder, index))
        known.append((penalty, float(support.settings["expected_share"])))
        write_atomic(record, json.dumps(known).encode())
        shutil.rmtree(folder / f"try-{index}", ignore_errors=True)
        log(f"diff pruning: penalty {penalty:.4g}: expected share {known[-1][1]:.3%}, the budget is {share:.3%}")
    best = min(range(len(known)), key=lambda index: _distance(known[index][1], share))
    if _distance(known[best][1], share):
        log(
            f"diff pruning: none of {len(known)} penalties gave {TARGET[0]:g} to {TARGET[1]:g} times the budget: "
            f"taking {known[best][0]:.4g} with {known[best][1]:.3%}; give more --gate-tries, or another --gate-penalty"
        )
    return load_support(_file(folder, best))


def next_penalty(known: Sequence[tuple[float, float]], share: float, first: float) -> float:
    """Return the penalty to try next: between the nearest ones on both sides of the target, or a step beyond all.

    Args:
        known: (penalty, expected share) of each try.
        share: the budget.
        first: the penalty to begin with.
    """
    if not known:
        return first
    center = share * math.sqrt(TARGET[0] * TARGET[1])
    too_open = [penalty for penalty, found in known if found > center]
    too_closed = [penalty for penalty, found in known if found <= center]
    if not too_closed:
        return max(too_open) * STEP
    if not too_open:
        return min(too_closed) / STEP
    return math.sqrt(max(too_open) * min(too_closed))


def _distance(found: float, share: float) -> float:
    """Return how far a share is from the target, as a factor's logarithm; 0 within it."""
    low, high = TARGET[0] * share, TARGET[1] * share
    return max(math.log(max(low, 1e-300) / max(found, 1e-300)), math.log(max(found, 1e-300) / high), 0.0)


def _file(folder: Path, index: int) -> Path:
    return folder / f"try-{index}.safetensors"
