"""The server: plans the rounds, and writes the delta that ``taskedge eval`` and ``predict`` take."""

import tomllib
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.flower.strategy import TaskEdgeStrategy
from taskedge.cooperation.joint_task import Asked, joint_task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run."""
    config = context.run_config
    settings = CooperateSettings(**tomllib.loads("\n".join(str(config["settings"]).split())))
    asked = Asked(str(config["model"]), classes=tuple(str(config["classes"]).split()), seed=settings.seed)
    joint = joint_task(asked, print)
    strategy = TaskEdgeStrategy(
        joint.base.model, settings, whole=joint.whole, labels=joint.labels, table=joint.costs(), on_event=print
    )
    strategy.start(grid, strategy.arrays(), num_rounds=settings.rounds)
    written = joint.told(strategy.delta(), {"mode": settings.mode, "rounds": settings.rounds})
    written.save(Path(str(config["out"])))
    print(f"wrote {config['out']}")
