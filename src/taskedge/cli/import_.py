"""``taskedge import``: make a delta of a PEFT adapter."""

from __future__ import annotations

from pathlib import Path

import click

from taskedge.cli.shared_options import (
    force_option,
    json_option,
    print_json,
    print_status,
    refuse_input_as_output,
)

EPILOG = """\b
Examples:
  taskedge import lora-adapter/ --out task.safetensors
  taskedge import lora-adapter/ --model ./bert-base --labels negative,positive
"""


@click.command(epilog=EPILOG)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("task.safetensors"), show_default=True,
    help="The delta file to write.",
)  # fmt: skip
@click.option("--model", help="Base model: a local folder or a hub id.  [default: the one the adapter names]")
@click.option(
    "--labels", help="The classes in the adapter's order, with commas.  [default: the classes in the base's config]"
)
@force_option
@json_option
def command(folder: Path, out: Path, model: str | None, labels: str | None, force: bool, as_json: bool) -> None:
    """Convert a PEFT LoRA adapter folder to a delta file for info, eval, predict and merge."""
    from taskedge.errors import InputError
    from taskedge.io.atomic import require_writable
    from taskedge.io.lock import hold_lock

    refuse_input_as_output(out, folder / "adapter_config.json", folder / "adapter_model.safetensors")
    require_writable(out)
    click.get_current_context().with_resource(hold_lock(out))
    if out.exists() and not force:
        raise InputError(f"{out} exists: name another file with --out, or replace it with --replace")
    if out.is_dir():
        raise InputError(f"{out} is a folder: name a file with --out")
    from taskedge.delta.file import save
    from taskedge.delta.interop.peft_import import import_peft

    names = [label.strip() for label in labels.split(",")] if labels is not None else []
    delta = import_peft(folder, model, names, log=print_status)
    save(delta, out)
    size = out.stat().st_size
    if as_json:
        print_json(
            {
                "out": out,
                "bytes": size,
                "linears": len(delta.low_rank),
                "low_rank_parameters": delta.num_low_rank_parameters,
                "whole_parameters": delta.num_full_parameters,
                "base": delta.provenance.base,
                "labels": delta.provenance.labels,
            }
        )
        return
    click.echo(
        f"{out}: {size:,} bytes; low-rank products of {delta.num_low_rank_parameters:,} parameters in "
        f"{len(delta.low_rank)} linears and {delta.num_full_parameters:,} fully trained parameters, for "
        f"{delta.provenance.base}"
    )
