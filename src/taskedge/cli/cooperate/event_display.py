"""Show the events of a run while it goes: a table of tasks, or a line per round. All output is on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from taskedge.cli.shared_options import print_status
from taskedge.reporting.tables import ranges

if TYPE_CHECKING:
    from taskedge.cooperation.coordinator.event_log import Event

HEADER = (
    f"{'round':>5}  {'device':12}  {'blocks':14}  {'down B':>9}  {'up B':>9}  "
    f"{'planned s':>9}  {'took s':>7}  {'loss':>7}"
)
SENTENCES = {
    "joined": "{device} is here",
    "left": "{device} is gone",
    "unfit": "{device} cannot take part: {why}",
    "quarantined": "{device} gets no more tasks after {refused} refused answers: {why}",
    "flooded": "{device} floods: {why}",
    "server": "{why}",
    "healed": "the saved calibration of {devices} was unusable and begins anew: {why}",
    "restored": "{why}",
    "fewer": "continues with fewer devices: {why}",
    "capped statistics": "{device} counts less for the choice of weights: {why}",
    "no statistics": "{device} gave no statistics: {why}",
    "support": "chose {entries:,} entries ({share:.3%}) together with {devices} devices",
    "planned": "round {round} planned: {why}",
    "waiting": "round {round} waits for other devices: {why}",
    "resumed": "resumed after round {round}",
}
"""Events other than tasks and rounds that are shown, with their text."""


class TaskTable:
    """A table with a row for each task."""

    def __init__(self) -> None:
        self._has_header = False

    def __call__(self, event: Event) -> None:
        """Show an event of the log, if it is one of those shown."""
        if event["event"] == "round" and _robust_text(event):
            print_status(f"round {event['round']}{_robust_text(event)}")
        if event["event"] != "task":
            _print_sentence(event)
            return
        if not self._has_header:
            print_status(HEADER)
            self._has_header = True
        print_status(task_row(event))


class RoundLines:
    """A line for each round.

    Args:
        rounds: Number of rounds of the run.
    """

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._bytes_down = self._bytes_up = 0

    def __call__(self, event: Event) -> None:
        """Show an event of the log, if it is one of those shown."""
        if event["event"] == "task":
            self._bytes_down += event["bytes_down"]
            self._bytes_up += event["bytes_up"]
            if event["result"] != "accepted":
                print_status(f"{event['device']}: {event['result']} {event['why']}".rstrip())
        elif event["event"] == "round":
            print_status(
                f"round {event['round']}/{self._rounds}: {event['accepted']} of {event['devices']} devices, "
                f"{event['seconds']:.2f} s (planned {event['predicted_seconds']:.2f} s), {self._bytes_down:,} B down, "
                f"{self._bytes_up:,} B up, loss {_loss_text(event)}{_robust_text(event)}"
            )
            self._bytes_down = self._bytes_up = 0
        else:
            _print_sentence(event)


def task_row(event: Event) -> str:
    """Return the table row of a task: device, blocks, bytes, seconds, loss, and why it was not used."""
    remark = ""
    if event["real_seconds"] is not None and event["real_seconds"] > event["stated_seconds"]:
        remark = f"  the real step took {event['real_seconds']:.2f} s, {event['stated_seconds']:.2f} s were to emulate"
    elif event["result"] != "accepted":
        remark = f"  {event['result']} {event['why']}".rstrip()
    return (
        f"{event['round']:>5}  {event['device']:12}  {_blocks_text(event['blocks']):14}  "
        f"{event['bytes_down']:>9,}  {event['bytes_up']:>9,}  "
        f"{event['predicted_seconds']:>9.2f}  {event['observed_seconds']:>7.2f}  {_loss_text(event):>7}{remark}"
    )


def _robust_text(event: Event) -> str:
    """Return whose answers were scaled down or count less in a round, and which blocks have no robust rule."""
    texts = []
    for field, meaning in (("scaled", "scaled down to the median"), ("capped", "with fewer tokens than claimed")):
        if event.get(field):
            texts.append(f"; {meaning}: {', '.join(event[field])}")
    if event.get("by_mean"):
        texts.append(f"; too few answers for a robust rule: {_blocks_text(event['by_mean'])}")
    return "".join(texts)


def _loss_text(event: Event) -> str:
    return "-" if event["loss"] is None else f"{event['loss']:.4f}"


def _blocks_text(blocks: list[int]) -> str:
    """Return depths as ranges, and the head (0) by its name: ``head 1-3 6``."""
    depths = ranges(sorted(block for block in blocks if block), separator=" ")
    return f"head {depths}".rstrip() if 0 in blocks else depths


def _print_sentence(event: Event) -> None:
    sentence = SENTENCES.get(event["event"])
    if sentence is not None:
        print_status(click.style(sentence.format(**event), dim=True))
