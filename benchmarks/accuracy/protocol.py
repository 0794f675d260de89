"""The rules of the comparison: what every method gets alike. Nothing heavy is imported here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Learning rates, of the body and of the head."""
HEAD_LR = 1e-2
"""The head's rate at which every search begins."""
TRIALS = 9
"""Pairs of rates that each method tries on the first seed."""
FINALISTS = 2
"""Pairs that run on a second seed."""
SEEDS = (0, 1, 2, 3, 4)
BATCH = 16
"""Rows in a batch: the default of ``taskedge tune``."""
SELECTION_ROWS = 16 * BATCH
"""Training rows that a selection rule reads."""
PATIENCE = 3
"""Evaluations without a better validation loss after which a run has converged."""
LONG = 6
"""The cap of a run to convergence, in short budgets."""

TASK_NAMES = {
    "question-types": "TREC questions (50 classes)",
    "movie-reviews": "Movie reviews (2 classes)",
    "tweets": "Tweets (2 classes)",
    "sms-spam": "SMS spam (2 classes)",
    "bbc-news": "BBC news (5 classes)",
    "sarcasm": "Sarcasm headlines (2 classes)",
    "r52": "Reuters R52 (52 classes)",
    "question-types-mpnet": "TREC questions (50 classes)",
    "tweets-mpnet": "Tweets (2 classes)",
}

MINILM, MPNET = "MiniLM-L6", "MPNet-base"
BASES = {MINILM: 22_713_216, MPNET: 109_486_464}
"""Parameters of each base, without a head."""


def base_of(task: str) -> str:
    """Return the base that the runs of a task train."""
    return MPNET if task.endswith("-mpnet") else MINILM


OURS_NAMES = (
    "taskedge",
    "8 columns, one entry",
    "random 8 columns, one entry",
    "8 columns",
    "random 8 columns",
    "random",
    "8 columns, 4 draws",
    "8 columns, one entry, 4 draws",
    "taskedge 0.5%",
    "random 0.5%",
    "gates on 8 candidates",
    "gates on 8 random candidates",
    "gates on 8 random candidates, rewound",
    "sparse TAPS",
    "sparse + LoRA r=1",
)
"""Methods of this project; the others are rivals."""

Pair = tuple[float | None, float]
"""Learning rates of the body (None without one) and of the head."""


def score(run: Mapping[str, Any]) -> float:
    """Return what a trial is judged by: validation accuracy; the loss decides between close ones."""
    if run["validation_loss"] is None:
        return -math.inf
    return float(run["validation"]) - 0.01 * float(run["validation_loss"])


def next_pair(tried: Mapping[Pair, float], body_lr: float | None) -> Pair:
    """Return the pair of rates to try next.

    The first is the start. Then come the neighbors of the best pair on the two ladders, the head's first. When all of
    these are known, the ring around the best is filled, nearest first.

    Args:
        tried: score of each pair so far.
        body_lr: body rate of the start; None for a method without one, whose search is along the head's ladder.
    """
    if not tried:
        return (body_lr, HEAD_LR)
    best = max(tried, key=lambda pair: tried[pair])
    return next(pair for pair in _by_distance(best) if pair not in tried)


def _by_distance(center: Pair) -> Iterator[Pair]:
    body, head = center
    bodies: Sequence[float | None] = [None] if body is None else LADDER
    at_body = 0 if body is None else LADDER.index(body)

    def distance(pair: Pair) -> tuple[float, int, int]:
        steps_body = bodies.index(pair[0]) - at_body
        steps_head = LADDER.index(pair[1]) - LADDER.index(head)
        return (math.hypot(steps_body, steps_head), abs(steps_body), -steps_head)

    yield from sorted(((b, h) for b in bodies for h in LADDER), key=distance)


def lower(rate: float | None) -> float | None:
    """Return the next lower rate of the ladder, if there is a rate."""
    return None if rate is None else LADDER[max(LADDER.index(rate) - 1, 0)]


def still_falls(log: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the mean training loss of the last tenth of the steps is over 2 % below the tenth before."""
    losses = [entry["loss"] for entry in log]
    tenth = max(len(losses) // 10, 1)
    last, before = losses[-tenth:], losses[-2 * tenth : -tenth]
    return bool(before) and sum(last) / len(last) < 0.98 * sum(before) / len(before)
