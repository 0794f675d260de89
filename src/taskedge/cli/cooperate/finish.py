"""The end of a run: the delta file, what it is worth on held-out data, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskedge.cli.config_options import print_json
from taskedge.cli.cooperate.screen import summary, traffic
from taskedge.cli.delta_options import figures

if TYPE_CHECKING:
    from taskedge.cooperation.coordinator.nats_run import Led
    from taskedge.cooperation.joint_task import JointTask
    from taskedge.training.data.table import Table
    from taskedge.training.tasks import Measures


@dataclass(frozen=True)
class Finished:
    """A run whose delta is written."""

    out: Path
    led: Led
    quality: Measures | None

    def tell(self, *, show_traffic: bool, as_json: bool) -> None:
        """Prints what came of it."""
        if as_json:
            print_json(self.led.facts() | {"out": str(self.out), "quality": self.quality})
            return
        click.echo(summary(self.out, self.led))
        if self.quality is not None:
            click.echo(f"on held-out data: {figures(self.quality)} ({self.quality['rows']:,} rows)")
        if show_traffic:
            click.echo(traffic(self.led.traffic))


def finish(joint: JointTask, led: Led, out: Path, held_out: Table | None, batch_size: int) -> Finished:
    """Writes the delta, and measures what was written."""
    led.delta.save(out)
    return Finished(out, led, joint.evaluate(out, held_out, batch_size) if held_out is not None else None)
