"""``taskedge bench device``: tokens per second, MFU, tokens per joule and granularity of models of three kinds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from taskedge.backbone.shapes import SHAPES, known_shape, shape_of
from taskedge.cli.config_options import note
from taskedge.cli.plan_options import cannot_be_used, force_option, json_option, refuse_existing, write_text

EPILOG = """\b
Examples:
  taskedge bench device
  taskedge bench device --shape t5-small --batch-size 8 --length 64
  taskedge bench device --model ./minilm --uplink 1Mbit/s --local-steps 50 --out jetson-1.json
  taskedge bench device --watts 7 --json
"""

_PREFIX = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


class BitRate(click.ParamType):  # type: ignore[type-arg]  # generic in later versions only
    """``10Mbit/s``, ``250 kbit/s``, or a plain number of bit/s."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        read = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:([kMG]?)bit/s)?", value.strip())
        rate = float(read[1]) * _PREFIX[read[2] or ""] if read else 0.0
        if rate <= 0:
            self.fail(f"{value!r} is no bit rate above 0; write 10Mbit/s, 250kbit/s or 1e7", param, ctx)
        return rate


@click.command("device", epilog=EPILOG)
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), help="Known, with random weights.")
@click.option(
    "--model", "models", multiple=True, metavar="M", help="Folder or hub name; random weights where it has none."
)
@click.option("--batch-size", default=4, show_default=True, type=click.IntRange(1), metavar="B", help="Sequences.")
@click.option("--length", default=128, show_default=True, type=click.IntRange(1), metavar="N", help="Tokens each.")
@click.option("--steps", default=5, show_default=True, type=click.IntRange(3), help="Timed steps for each model.")
@click.option("--per-neuron", default=1, show_default=True, type=click.IntRange(1), help="Trained entries per neuron.")
@click.option("--uplink", default="10Mbit/s", show_default=True, type=BitRate(), help="From the device to a server.")
@click.option("--downlink", type=BitRate(), help="And back.  [default: as in a fleet file, 50Mbit/s]")
@click.option("--local-steps", default=10, show_default=True, type=click.IntRange(1), help="Steps in a round.")
@click.option("--watts", type=click.FloatRange(0, min_open=True), help="The machine's power, where it has no counter.")
@click.option(
    "--clock",
    default="wall",
    show_default=True,
    type=click.Choice(["wall", "cpu"]),
    help="cpu: processor seconds, for a machine in use by others (one thread).",
)
@click.option("--device", default="cpu", show_default=True, help="A torch device, such as cuda.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Write the figures as JSON.")
@json_option
@force_option
def command(
    shapes: tuple[str, ...],
    models: tuple[str, ...],
    batch_size: int,
    length: int,
    steps: int,
    per_neuron: int,
    uplink: float,
    downlink: float | None,
    local_steps: int,
    watts: float | None,
    clock: Any,
    device: str,
    out: Path | None,
    as_json: bool,
    force: bool,
) -> None:
    """Say what this machine does with an encoder, a causal language model and a T5-type model.

    Each runs forward and in sparse training steps on random token ids; without --shape and --model the known shapes
    run, one of each kind, with random weights.
    """
    refuse_existing([out], force)
    import transformers

    from taskedge.errors import InputError
    from taskedge.planning.fleet_spec import Channel, Server
    from taskedge.profiling.device_benchmark import Link, bench_device
    from taskedge.profiling.step_profile import Effort
    from taskedge.reporting.tables import device_text

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    asked = [*map(shape_of, models), *map(known_shape, shapes or (() if models else SHAPES))]
    link = Link(
        uplink_bits_per_second=uplink,
        downlink_bits_per_second=downlink or Server().downlink_bits_per_second,
        bytes_per_value=Channel(bandwidth_hz=1.0).bytes_per_value,
        local_steps=local_steps,
    )
    try:
        report = bench_device(
            asked,
            link,
            Effort(steps=steps, clock=clock),
            sequences=batch_size,
            length=length,
            per_neuron=per_neuron,
            watts=watts,
            device=device,
            say=note,
        )
    except InputError:
        raise
    except (ValueError, RuntimeError, AssertionError) as error:  # no such device, not enough memory
        raise cannot_be_used(", ".join(shape.name for shape in asked), error) from None
    text = report.model_dump_json(indent=2) + "\n"
    if out is not None:
        write_text(out, text)
    click.echo(text if as_json else device_text(report.model_dump()), nl=not as_json)
