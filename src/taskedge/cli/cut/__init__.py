"""The verbs of ``taskedge cut``."""

from __future__ import annotations

import click

from taskedge.cli.cut import cut_local, cut_serve, cut_train

EPILOG = """\b
Examples:
  taskedge cut local --model ./minilm --train reviews.csv --text review --label sentiment --budget 0.05%
  taskedge cooperate init --name plant-7 --host 10.0.0.5 --listen 0.0.0.0
  taskedge cooperate enrol jetson-1
  taskedge cut serve --model ./minilm
  taskedge cut train --bundle jetson-1 --train local.csv --text review --label sentiment --budget 0.05%
"""


@click.group(
    commands={
        "local": cut_local.command,
        "serve": cut_serve.command,
        "train": cut_train.command,
    },
    epilog=EPILOG,
)
def command() -> None:
    """Train with a frozen model in the cloud, and data, labels and everything that trains on the device.

    The device holds the embedding, the head and the trained entries, and no block of the model. Activations and their
    gradients cross. local tries this on one machine. For real devices, `taskedge cooperate init` and `enrol` make keys,
    serve computes in the cloud, and train runs on the device.
    """
