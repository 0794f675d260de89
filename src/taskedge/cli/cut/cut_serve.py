"""``taskedge cut serve``: the cloud's end of the cut."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import click

from taskedge.cli.cooperate.cooperate_options import fleet_folder, folder_option, sigterm_as_interrupt
from taskedge.cli.shared_options import print_status
from taskedge.errors import InputError


@click.command(
    "serve",
    short_help="Compute the blocks of a model for devices.",
    epilog="""\b
Examples:
  taskedge cut serve --model ./minilm
  taskedge cut serve --model ./minilm --name plant-7 --max-devices 4 --step-seconds 30
""",
)
@folder_option
@click.option("--name", help="Name of the fleet, whose folder is in this one; instead of --folder.")
@click.option("--model", required=True, help="Base model: a local folder or a hub id.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Data type of the base weights; 'auto': the one in which its files store them.",
)
@click.option(
    "--max-devices", default=16, show_default=True, type=click.IntRange(1), help="Devices that are served at once."
)
@click.option(
    "--max-tokens", default=65_536, show_default=True, type=click.IntRange(1), help="Largest batch, rows x length."
)
@click.option(
    "--step-seconds",
    default=120.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Longest wait for a device within a step. Then its step is dropped, and the device starts it again.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
def command(
    folder: Path | None,
    name: str | None,
    model: str,
    dtype: str,
    max_devices: int,
    max_tokens: int,
    step_seconds: float,
    threads: int | None,
) -> None:
    """Hold a frozen base, and compute its blocks for the enrolled devices until Ctrl-C.

    Starts the server of the fleet that `taskedge cooperate init` made, or finds it running. Sees embedded tokens,
    activations and gradients of devices, and no token id and no label. Keeps nothing of a device that leaves.
    """
    from taskedge.cooperation.fleet.coordinator_lock import hold_coordinator_lock
    from taskedge.cooperation.fleet.device_registry import DeviceRegistry

    if folder is not None and name is not None:
        raise InputError("--folder and --name both name the fleet: give one")
    path = fleet_folder(Path(name) if name is not None else folder)
    registry = DeviceRegistry.open(path)
    if not registry.devices:
        raise InputError(f"{path}: nobody is enrolled: taskedge cooperate enrol DEVICE makes a device's keys")

    import torch

    from taskedge.cooperation.cut.base_parts import write_parts
    from taskedge.cooperation.cut.cloud import Cloud, CloudLimits
    from taskedge.cooperation.cut.cloud_base import load_cloud_base
    from taskedge.cooperation.fleet.server_watch import keep_server_running
    from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink

    if threads is not None:
        torch.set_num_threads(threads)
    limits = CloudLimits(devices=max_devices, tokens=max_tokens, seconds=step_seconds)

    async def serve(base: Any, parts: Any) -> None:
        link = await NatsCoordinatorLink.connect(registry.coordinator_bundle)
        watching = asyncio.create_task(keep_server_running(registry, lambda event: print_status(str(event.get("why")))))
        try:
            await Cloud(link, base, parts, limits, log=print_status).serve()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await link.close()

    with (
        hold_coordinator_lock(path),
        sigterm_as_interrupt(),
        tempfile.TemporaryDirectory(prefix="taskedge-cut-") as scratch,
    ):
        base = load_cloud_base(model, dtype, print_status)
        parts = write_parts(model, base.stack, len(base.blocks), Path(scratch) / "parts")
        server = registry.start_server()
        print_status(
            f"the server listens on {registry.listen}:{registry.port} (process {server.pid}); {model} has "
            f"{len(base.blocks)} blocks; devices get {parts.header['bytes']:,} bytes of it, once"
        )
        asyncio.run(serve(base, parts))
