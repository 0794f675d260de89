"""What a run shows while it goes: a table of tasks, or a line for each round; all on standard error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.config_options import note

if TYPE_CHECKING:
    from taskedge.cooperation.coordinator.event_log import Event
    from taskedge.cooperation.coordinator.nats_run import Led, Sent

HEADER = (
    f"{'round':>5}  {'device':12}  {'blocks':14}  {'down B':>9}  {'up B':>9}  "
    f"{'planned s':>9}  {'took s':>7}  {'loss':>7}"
)


class TaskTable:
    """A row for each task."""

    def __init__(self) -> None:
        self._begun = False

    def __call__(self, event: Event) -> None:
        """Shows an event of the log, if it is one for the screen."""
        if event["event"] != "task":
            _tell(event)
            return
        if not self._begun:
            note(HEADER)
            self._begun = True
        note(row(event))


class RoundLines:
    """A line for each round."""

    def __init__(self, rounds: int) -> None:
        self._rounds, self._down, self._up = rounds, 0, 0

    def __call__(self, event: Event) -> None:
        """Shows an event of the log, if it is one for the screen."""
        if event["event"] == "task":
            self._down += event["bytes_down"]
            self._up += event["bytes_up"]
            if event["result"] != "accepted":
                note(f"{event['device']}: {event['result']} {event['why']}".rstrip())
        elif event["event"] == "round":
            note(
                f"round {event['round']}/{self._rounds}: {event['accepted']} of {event['devices']} devices, "
                f"{event['seconds']:.2f} s (planned {event['predicted_seconds']:.2f} s), {self._down:,} B down, "
                f"{self._up:,} B up, loss {_loss(event)}"
            )
            self._down = self._up = 0
        else:
            _tell(event)


def row(event: Event) -> str:
    """One task: who trained what, what crossed the wire, how long it took, and what became of it."""
    blocks = _blocks(event["blocks"])
    ended = "" if event["result"] == "accepted" else f"  {event['result']} {event['why']}".rstrip()
    if event["real_seconds"] is not None and event["real_seconds"] > event["stated_seconds"]:
        ended = f"  the real step took {event['real_seconds']:.2f} s, {event['stated_seconds']:.2f} s were to emulate"
    return (
        f"{event['round']:>5}  {event['device']:12}  {blocks:14}  {event['bytes_down']:>9,}  {event['bytes_up']:>9,}  "
        f"{event['predicted_seconds']:>9.2f}  {event['observed_seconds']:>7.2f}  {_loss(event):>7}{ended}"
    )


def traffic(sent: Iterable[Sent]) -> str:
    """What crossed the wire, by kind."""
    rows = [f"{'kind':12}  {'to':11}  {'messages':>8}  {'bytes':>12}"]
    places = {"down": "devices", "up": "coordinator"}
    rows += [f"{it.kind:12}  {places[it.direction]:11}  {it.messages:>8,}  {it.bytes:>12,}" for it in sent]
    return "\n".join(rows)


def summary(out: Any, led: Led) -> str:
    """What a run gave, in two lines."""
    result = led.result
    down, up = (sum(it.bytes for it in led.traffic if it.direction == way) for way in ("down", "up"))
    loss = "" if result.loss is None else f", training loss {result.loss:.3f}"
    return (
        f"{out}: {result.entries:,} entries ({result.share:.3%}) and a head of {result.head:,} parameters\n"
        f"{out.stat().st_size:,} bytes, {result.rounds} rounds in {result.seconds:.0f} s on {len(result.bytes_up)} "
        f"devices{loss}; {down:,} bytes down, {up:,} up"
    )


def _loss(event: Event) -> str:
    return "-" if event["loss"] is None else f"{event['loss']:.4f}"


def _blocks(blocks: list[int]) -> str:
    """Depths, with the head by its name: ``head 1-3 6``."""
    runs: list[list[int]] = []
    for block in sorted(block for block in blocks if block):
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    parts = ["head"] if 0 in blocks else []
    return " ".join(parts + [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs])


_SENTENCES = {
    "joined": "{device} is here",
    "left": "{device} is gone",
    "unfit": "{device} cannot take part: {why}",
    "quarantined": "{device} gets no more tasks after {refused} refused answers: {why}",
    "no statistics": "{device} gave no statistics: {why}",
    "support": "chose {entries:,} entries ({share:.3%}) together with {devices} devices",
    "planned": "round {round} planned: {why}",
    "waiting": "round {round} waits for other devices: {why}",
    "resumed": "goes on after round {round}",
}


def _tell(event: Event) -> None:
    sentence = _SENTENCES.get(event["event"])
    if sentence is not None:
        note(click.style(sentence.format(**event), dim=True))
