"""``taskedge cut train``: the device's end of the cut."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from taskedge.cli.cut.cut_options import plan_options, print_plans, print_result, run_options, settings_from_flags
from taskedge.cli.shared_options import force_option, json_option, print_status
from taskedge.errors import Interrupted

GOODBYE_SECONDS = 0.1
"""For the last answer to leave."""


@click.command(
    "train",
    short_help="Train on this device with the model in the cloud.",
    epilog="""\b
Examples:
  taskedge cut train --bundle jetson-1 --train local.csv --budget 0.05% --max-columns 32 --max-rows 32
  taskedge cut train --bundle jetson-1 --train local.csv --max-columns 32 --active-share 1/8 --coding int8
  taskedge cut train --bundle jetson-1 --train local.csv --max-columns 32 --resume
""",
)
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Folder that `cooperate enrol` created.")
@run_options("model")
@plan_options
@click.option("--resume", is_flag=True, help="Continue the interrupted run of --out.")
@force_option
@json_option
def command(
    bundle: Path,
    plan_only: bool,
    bandwidth: tuple[float, ...],
    delay: float,
    resume: bool,
    force: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train a delta on this device's data, with the blocks of the model in the cloud (`taskedge cut serve`).

    Texts, token ids and labels stay here; so do the head and the trained entries. Embedded tokens, activations and
    gradients leave, and tell something about the texts (docs/cut.md). --noise limits what they tell.
    """
    config, settings = settings_from_flags(flags, model="the cloud's")

    from taskedge.cooperation.cut.base_parts import PartsStore
    from taskedge.cooperation.cut.conversation import Conversation, LoopThread
    from taskedge.cooperation.cut.cut_preview import preview_over_cut
    from taskedge.cooperation.cut.cut_run import outgoing_noise, train_over_cut
    from taskedge.cooperation.cut.device_end import DeviceEnd
    from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink
    from taskedge.training.tune_folder import is_interrupted, run_folder

    async def open_link() -> NatsDeviceLink:
        return NatsDeviceLink(bundle)

    store, conversation = PartsStore(bundle / "base"), Conversation(settings.patience)
    noise = outgoing_noise(settings)
    end = DeviceEnd(conversation, store, coding=settings.coding, seed=config.seed, noise=noise, log=print_status)
    with LoopThread() as loop:
        link = loop.run(open_link())
        loop.start(link.serve(conversation.handle), conversation.end)
        try:
            if plan_only:
                plans = preview_over_cut(config, settings, end, store, log=print_status)
                print_plans(plans, bandwidth, delay, as_json=as_json)
                return
            result = train_over_cut(
                config, settings, end, store, resume=resume, force=force, noise=noise, log=print_status
            )
        except KeyboardInterrupt:
            if is_interrupted(run_folder(config)):
                raise Interrupted("interrupted: continue with --resume") from None
            raise
            loop.run(asyncio.sleep(GOODBYE_SECONDS))
        finally:
            loop.run(link.close())
    print_result(result, config.eval, {}, as_json=as_json)
