"""``taskedge cut local``: both ends of the cut on this machine."""

from __future__ import annotations

from typing import Any

import click

from taskedge.cli.cut.cut_options import plan_options, print_plans, print_result, run_options, settings_from_flags
from taskedge.cli.shared_options import force_option, json_option, print_status
from taskedge.errors import Interrupted


@click.command(
    "local",
    short_help="Train with both ends on this machine.",
    epilog="""\b
Examples:
  taskedge cut local --model ./minilm --train reviews.csv --text review --label sentiment --budget 0.05%
  taskedge cut local --model ./minilm --train reviews.csv --max-columns 32 --max-rows 32 --allocation block --plan
  taskedge cut local --model ./minilm --train reviews.csv --max-columns 32 --active-share 1/8 --coding bf16
  taskedge cut local --model ./minilm --train reviews.csv --form lora --rank 8 --resume
""",
)
@run_options()
@plan_options
@click.option("--resume", is_flag=True, help="Continue the interrupted run of --out.")
@force_option
@json_option
def command(
    plan_only: bool,
    bandwidth: tuple[float, ...],
    delay: float,
    resume: bool,
    force: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train a delta with the model behind the cut, in one process: the same messages and checks as over a network.

    Prints the bytes that would have crossed. The result is a delta file like that of `taskedge tune`.
    """
    config, settings = settings_from_flags(flags)

    from taskedge.cooperation.cut.cut_local import both_ends, cut_local
    from taskedge.cooperation.cut.cut_preview import preview_over_cut
    from taskedge.training.tune_folder import is_interrupted, run_folder

    if plan_only:
        with both_ends(config, settings, log=print_status) as ends:
            plans = preview_over_cut(config, settings, ends.end, ends.store, log=print_status)
        print_plans(plans, bandwidth, delay, as_json=as_json)
        return
    try:
        done = cut_local(config, settings, resume=resume, force=force, log=print_status)
    except KeyboardInterrupt:
        if is_interrupted(run_folder(config)):
            raise Interrupted("interrupted: continue with --resume") from None
        raise
    traffic = {
        "up": sum(done.up.bytes.values()),
        "down": sum(done.down.bytes.values()),
        "up_by_kind": done.up.bytes,
        "down_by_kind": done.down.bytes,
    }
    print_result(done.result, config.eval, traffic, as_json=as_json)
