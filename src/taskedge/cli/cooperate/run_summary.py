"""The end of a run: write the delta, measure it on held-out data, and print a summary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskedge.cli.inference_options import measures_text
from taskedge.cli.shared_options import print_json
from taskedge.delta.file import save
from taskedge.reporting.tables import columns, count_text, percent_text

if TYPE_CHECKING:
    from taskedge.cooperation.fleet.nats_run import CoordinatorOutcome, TrafficSummary
    from taskedge.cooperation.joint_task import JointTask
    from taskedge.training.data.table import Table
    from taskedge.training.tasks import Measures


@dataclass(frozen=True)
class RunSummary:
    """A run whose delta is written."""

    out: Path
    outcome: CoordinatorOutcome
    measures: Measures | None
    """On held-out data; None without any."""

    def print_summary(self, *, show_traffic: bool, as_json: bool) -> None:
        """Print the figures of the run on standard output."""
        if as_json:
            print_json(self.outcome.to_json() | {"out": str(self.out), "quality": self.measures})
            return
        click.echo(_figures_text(self.out, self.outcome))
        if self.measures is not None:
            click.echo(f"on held-out data: {measures_text(self.measures)} ({self.measures['rows']:,} rows)")
        if show_traffic:
            click.echo(traffic_table(self.outcome.traffic))


def finish_run(
    joint: JointTask, outcome: CoordinatorOutcome, out: Path, eval_table: Table | None, batch_size: int
) -> RunSummary:
    """Write the delta, and measure the written file on held-out data."""
    save(outcome.delta, out)
    return RunSummary(out, outcome, joint.evaluate(out, eval_table, batch_size) if eval_table is not None else None)


REVEALED = """\
gradients, changes: computed from rows and labels. One row's give the row away; the head's, at any batch size, how often
    each label occurs in it
statistics: sums over the inputs of each linear, which few rows shape
task, done: the trained values of the whole model, to every device in every round (docs/privacy.md)"""


def traffic_table(traffic: Iterable[TrafficSummary]) -> str:
    """Return messages and bytes by kind and direction, as a table, and what they reveal."""
    receivers = {"down": "devices", "up": "coordinator"}
    rows = [["kind", "to", "messages", "bytes"]]
    for summary in traffic:
        rows.append([summary.kind, receivers[summary.direction], f"{summary.messages:,}", f"{summary.bytes:,}"])
    return f"{columns(rows, left=(0, 1))}\n{REVEALED}"


def _figures_text(out: Path, outcome: CoordinatorOutcome) -> str:
    result = outcome.result
    down, up = (
        sum(summary.bytes for summary in outcome.traffic if summary.direction == direction)
        for direction in ("down", "up")
    )
    loss = "" if result.loss is None else f", training loss {result.loss:.3f}"
    entries = count_text(result.entries, "entry", "entries")
    return (
        f"{out}: {entries} ({percent_text(result.share)}) and a head of {result.head:,} parameters\n"
        f"{out.stat().st_size:,} bytes, {count_text(result.rounds, 'round')} in {result.seconds:.0f} s on "
        f"{count_text(len(result.bytes_up), 'device')}{loss}; {down:,} bytes down, {up:,} up"
    )
