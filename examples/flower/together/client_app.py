"""A node. Its data is the table in ``--node-config 'name="jetson-1" data="/data/local.csv"'``."""

from pathlib import Path

from flwr.app import Context

from taskedge.cooperation.flower.client import NodeSetup, client_app
from taskedge.cooperation.joint_task import TaskSpec, joint_task


def load_node(context: Context) -> NodeSetup:
    """Load the model and this node's rows."""
    classes = tuple(str(context.run_config["classes"]).split())
    data = Path(str(context.node_config["data"]))
    joint = joint_task(TaskSpec(str(context.run_config["model"]), data, classes=classes), print)
    return NodeSetup(joint.local_training(), joint.labels)


app = client_app(load_node)
