"""``taskedge bench device``: tokens per second, MFU, tokens per joule and granularity of models of three kinds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from taskedge.backbone.shapes import SHAPES, known_shape, shape_of
from taskedge.cli.plan_options import unusable_model, write_text
from taskedge.cli.shared_options import force_option, json_option, print_status, refuse_existing

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
        """Return the bit/s; fail with an example of a bit rate."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:([kMG]?)bit/s)?", value.strip())
        rate = float(match[1]) * _PREFIX[match[2] or ""] if match else 0.0
        if rate <= 0:
            self.fail(f"{value!r} is not a bit rate above 0; write 10Mbit/s, 250kbit/s or 1e7", param, ctx)
        return rate


@click.command("device", epilog=EPILOG)
@click.option(
    "--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), help="Known shape, with random weights."
)
@click.option(
    "--model", "models", multiple=True, metavar="M", help="Folder or hub name; with random weights if it has none."
)
@click.option(
    "--batch-size", default=4, show_default=True, type=click.IntRange(1), metavar="B", help="Sequences in a batch."
)
@click.option(
    "--length", default=128, show_default=True, type=click.IntRange(1), metavar="N", help="Tokens in a sequence."
)
@click.option("--steps", default=5, show_default=True, type=click.IntRange(3), help="Timed steps for each model.")
@click.option("--per-neuron", default=1, show_default=True, type=click.IntRange(1), help="Trained entries per neuron.")
@click.option(
    "--uplink", default="10Mbit/s", show_default=True, type=BitRate(), help="Bit rate from the device to a server."
)
@click.option(
    "--downlink",
    type=BitRate(),
    help="Bit rate from the server to the device.  [default: 50Mbit/s, as in a fleet file]",
)
@click.option("--local-steps", default=10, show_default=True, type=click.IntRange(1), help="Training steps in a round.")
@click.option("--watts", type=click.FloatRange(0, min_open=True), help="Power of the machine, if it has no counter.")
@click.option(
    "--clock",
    default="wall",
    show_default=True,
    type=click.Choice(["wall", "cpu"]),
    help="Clock of the timings. cpu: processor seconds, for a machine in use by others (one thread).",
)
@click.option("--device", default="cpu", show_default=True, help="Torch device, such as cuda.")
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
    """Measure this machine with an encoder, a causal language model and a T5-type model.

    Each model runs forward passes and sparse training steps on random token ids. Without --shape and --model, the known
    shapes run with random weights, one of each kind.
    """
    refuse_existing([out], force)
    import transformers

    from taskedge.errors import InputError
    from taskedge.planning.fleet_spec import ChannelSpec, ServerSpec
    from taskedge.profiling.device_benchmark import RoundLink, bench_device
    from taskedge.profiling.step_profile import Effort
    from taskedge.reporting.tables import device_text

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    chosen = [*map(shape_of, models), *map(known_shape, shapes or (() if models else SHAPES))]
    link = RoundLink(
        uplink_bits_per_second=uplink,
        downlink_bits_per_second=downlink or ServerSpec().downlink_bits_per_second,
        bytes_per_value=ChannelSpec(bandwidth_hz=1.0).bytes_per_value,
        local_steps=local_steps,
    )
    try:
        report = bench_device(
            chosen,
            link,
            Effort(timed_steps=steps, clock=clock),
            sequences=batch_size,
            length=length,
            per_neuron=per_neuron,
            watts=watts,
            device=device,
            log=print_status,
        )
    except InputError:
        raise
    except (ValueError, RuntimeError, AssertionError) as error:  # no such device, not enough memory
        raise unusable_model(", ".join(shape.name for shape in chosen), error) from None
    text = report.model_dump_json(indent=2) + "\n"
    if out is not None:
        write_text(out, text)
    click.echo(text if as_json else device_text(report.model_dump()), nl=not as_json)
