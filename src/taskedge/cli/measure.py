"""``taskedge measure``: what a training step of a model costs on this machine, by depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.plan_options import cannot_be_used, force_option, json_option, progress, refuse_existing, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from taskedge.backbone.cost_table import BlockTable
    from taskedge.profiling.training_steps import Training

EPILOG = """\b
Examples:
  taskedge measure --model bert-base-uncased --batch-size 8 --length 128 --out jetson-1.json
  taskedge measure --model ./my-model --batch-size 16 --watts 15 --depths 1,6,12 --out pi.json
\b
Put the file's name into the fleet file:  profile = "jetson-1.json"
"""


@click.command(epilog=EPILOG)
@click.option("--model", required=True, metavar="M", help="Folder or hub name; the weights are loaded and run.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(1), metavar="B", help="Sequences.")
@click.option("--length", default=128, show_default=True, type=click.IntRange(1), metavar="N", help="Tokens each.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the profile, for the fleet file.")
@click.option("--depths", metavar="LIST", help="Depths to run, such as 1,3,6.  [default: first, middle, deepest]")
@click.option("--steps", default=9, show_default=True, type=click.IntRange(3), help="Timed steps per depth.")
@click.option("--per-neuron", default=1, show_default=True, type=click.IntRange(1), help="Trained entries per neuron.")
@click.option("--watts", type=click.FloatRange(0, min_open=True), help="The machine's power, where it has no counter.")
@click.option(
    "--clock",
    default="wall",
    show_default=True,
    type=click.Choice(["wall", "cpu"]),
    help="cpu: processor seconds, for a machine in use by others (one thread).",
)
@click.option("--device", default="cpu", show_default=True, help="A torch device, such as cuda.")
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
    """Run a model for some seconds, and say what a training step costs by depth.

    Trains a few entries of every neuron in place, in the blocks down to a depth, on random token ids. Three depths
    are run; the others are predicted from the FLOPs and the bytes that each block keeps.
    """
    refuse_existing([out], force)
    wanted = _depths(depths)
    from taskedge.profiling.step_profile import Effort, default_depths, measure
    from taskedge.reporting.tables import profile_text

    training, table, inputs = prepare(model, batch_size, length, per_neuron, device)
    effort = Effort(steps=steps, clock=clock)
    runs = len(set(wanted or default_depths(len(table)))) * (effort.steps + effort.warm)
    with progress(runs, "training steps") as advance:
        profile = measure(training, table, inputs, wanted, effort, watts, advance)
    text = profile.model_dump_json(indent=2) + "\n"
    if out is not None:
        write_text(out, text)
    click.echo(text if as_json else profile_text(profile.model_dump()), nl=not as_json)


def prepare(
    model: str, batch_size: int, length: int, per_neuron: int, device: str
) -> tuple[Training, BlockTable, dict[str, Tensor]]:
    """Loads the model's body with a support installed: (training, block table, one batch)."""
    import torch
    import transformers

    import taskedge as te
    from taskedge.backbone.cost_model import block_table, dummy_inputs, skeleton
    from taskedge.profiling.training_steps import Training

    shape = skeleton(model)
    table = block_table(shape, dummy_inputs(shape, 1, length), share=0.001, name=Path(model).name or model)
    transformers.utils.logging.disable_progress_bar()
    try:
        loaded = transformers.AutoModel.from_pretrained(model, use_safetensors=True).to(device)
        torch.manual_seed(0)
        inputs = dummy_inputs(loaded, batch_size, length)
        te.install(loaded, te.select(loaded, [inputs], per_neuron=per_neuron), trainable=[])
    except (OSError, ValueError, IndexError, RuntimeError, AssertionError) as error:
        # no weights, more tokens than positions, no such device (torch asserts), not enough memory
        raise cannot_be_used(model, error) from None
    return Training(loaded, f"{per_neuron} entries per neuron"), table, inputs


def _depths(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of depths; write 1,3,6", param_hint="--depths") from None
