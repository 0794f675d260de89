"""The server: plans the rounds, and writes the delta for ``taskedge eval`` and ``predict``."""

import tomllib
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.flower.strategy import TaskEdgeStrategy
from taskedge.cooperation.joint_task import TaskSpec, joint_task
from taskedge.delta.file import save

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds and write the delta."""
    run_config = context.run_config
    config = CooperationConfig(**tomllib.loads("\n".join(str(run_config["settings"]).split())))
    classes = tuple(str(run_config["classes"]).split())
    joint = joint_task(TaskSpec(str(run_config["model"]), classes=classes, seed=config.seed), print)
    strategy = TaskEdgeStrategy(
        joint.base.model,
        config,
        full_parameters=joint.full_parameters,
        labels=joint.labels,
        table=joint.block_table(),
        on_event=print,
    )
    strategy.start(grid, strategy.arrays(), num_rounds=config.rounds)
    delta = joint.with_run_provenance(strategy.delta(), {"mode": config.mode, "rounds": config.rounds})
    save(delta, Path(str(run_config["out"])))
    print(f"wrote {run_config['out']}")
