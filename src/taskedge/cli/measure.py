"""``taskedge measure``: cost of a training step of a model on this machine, by depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.plan_options import unusable_model, write_text
from taskedge.cli.shared_options import force_option, json_option, progress, refuse_existing

if TYPE_CHECKING:
    from torch import Tensor

    from taskedge.backbone.cost_table import BlockTable
    from taskedge.profiling.training_steps import DepthTraining

EPILOG = """\b
Examples:
  taskedge measure --model bert-base-uncased --batch-size 8 --length 128 --out jetson-1.json
  taskedge measure --model ./my-model --batch-size 16 --watts 15 --depths 1,6,12 --out pi.json
\b
Put the file's name into the fleet file:  profile = "jetson-1.json"
"""


@click.command(epilog=EPILOG)
@click.option("--model", required=True, metavar="M", help="Folder or hub name of a model with weights.")
@click.option(
    "--batch-size", default=8, show_default=True, type=click.IntRange(1), metavar="B", help="Sequences in a batch."
)
@click.option(
    "--length", default=128, show_default=True, type=click.IntRange(1), metavar="N", help="Tokens in a sequence."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the profile, for a fleet file.")
@click.option("--depths", metavar="LIST", help="Depths to run, such as 1,3,6.  [default: first, middle, deepest]")
@click.option("--steps", default=9, show_default=True, type=click.IntRange(3), help="Timed steps per depth.")
@click.option("--per-neuron", default=1, show_default=True, type=click.IntRange(1), help="Trained entries per neuron.")
@click.option("--watts", type=click.FloatRange(0, min_open=True), help="Power of the machine, if it has no counter.")
@click.option(
    "--clock",
    default="wall",
    show_default=True,
    type=click.Choice(["wall", "cpu"]),
    help="Clock of the timings. cpu: processor seconds, for a machine in use by others (one thread).",
)
@click.option("--device", default="cpu", show_default=True, help="Torch device, such as cuda.")
@json_option
@force_option
def command(
    model: str,
    batch_size: int,
    length: int,
    out: Path | None,
    depths: str | None,
    steps: int,
    per_neuron: int,
    watts: float | None,
    clock: Any,
    device: str,
    as_json: bool,
    force: bool,
) -> None:
    """Run a model for some seconds, and print the cost of a training step by depth.

    A step trains a few entries of every neuron in the blocks down to a depth, on random token ids. Three depths are
    measured. The others are predicted from the FLOPs and the stored bytes of each block.
    """
    refuse_existing([out], force)
    depth_list = _parse_depths(depths)
    from taskedge.profiling.step_profile import Effort, default_depths, measure_profile
    from taskedge.reporting.tables import profile_text

    training, table, inputs = prepare(model, batch_size, length, per_neuron, device)
    effort = Effort(timed_steps=steps, clock=clock)
    runs = len(set(depth_list or default_depths(len(table)))) * (effort.timed_steps + effort.warmup_steps)
    with progress(runs, "measuring", "step") as advance:
        profile = measure_profile(training, table, inputs, depth_list, effort, watts, advance)
    text = profile.model_dump_json(indent=2) + "\n"
    if out is not None:
        write_text(out, text)
    click.echo(text if as_json else profile_text(profile.model_dump()), nl=not as_json)


def prepare(
    model: str, batch_size: int, length: int, per_neuron: int, device: str
) -> tuple[DepthTraining, BlockTable, dict[str, Tensor]]:
    """Load a model without its head and install a support. Return the training, the block table and one batch."""
    import torch
    import transformers

    import taskedge as te
    from taskedge.backbone.cost_model import block_table, dummy_inputs, skeleton
    from taskedge.backbone.gguf_file import pretrained_arguments, weight_arguments
    from taskedge.profiling.training_steps import DepthTraining

    shape = skeleton(model)
    table = block_table(shape, dummy_inputs(shape, 1, length), share=0.001, name=Path(model).name or model)
    transformers.utils.logging.disable_progress_bar()
    try:
        with pretrained_arguments(model) as (location, arguments):
            more = weight_arguments(arguments)
            loaded = transformers.AutoModel.from_pretrained(location, use_safetensors=True, **more).to(device)
        torch.manual_seed(0)
        inputs = dummy_inputs(loaded, batch_size, length)
        te.install(loaded, te.select(loaded, [inputs], per_neuron=per_neuron), trainable=[])
    except (OSError, ValueError, IndexError, RuntimeError, AssertionError) as error:
        # no weights, more tokens than positions, no such device (torch asserts), not enough memory
        raise unusable_model(model, error) from None
    return DepthTraining(loaded, f"{per_neuron} entries per neuron"), table, inputs


def _parse_depths(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of depths; write 1,3,6", param_hint="--depths") from None
