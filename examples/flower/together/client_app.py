"""A node: its data is the table that ``--node-config 'name="jetson-1" data="/data/local.csv"'`` names."""

from pathlib import Path

from flwr.app import Context

from taskedge.cooperation.flower.client import Part, client_app
from taskedge.cooperation.joint_task import Asked, joint_task


def part(context: Context) -> Part:
    """The model, and this node's rows."""
    classes = tuple(str(context.run_config["classes"]).split())
    asked = Asked(str(context.run_config["model"]), Path(str(context.node_config["data"])), classes=classes)
    joint = joint_task(asked, print)
    return Part(joint.training(), joint.labels)


app = client_app(part)
