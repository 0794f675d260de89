"""``taskedge import``."""

from __future__ import annotations

from pathlib import Path

import click

from taskedge.cli.config_options import force_option, json_option, print_json

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
    "--labels", help="The classes in the adapter's order, with commas.  [default: those of the base's config]"
)
@force_option
@json_option
def command(folder: Path, out: Path, model: str | None, labels: str | None, force: bool, as_json: bool) -> None:
    """Turn a PEFT LoRA adapter folder into a delta file, which info, eval, predict and merge take."""
    from taskedge.errors import InputError

    if out.exists() and not force:
        raise InputError(f"{out} exists: name another file with --out, or replace it with --force")
    from taskedge.delta.interop.peft_import import import_peft

    delta = import_peft(folder, model, [label.strip() for label in labels.split(",")] if labels else ())
    delta.save(out)
    size = out.stat().st_size
    if as_json:
        print_json(
            {
                "out": out,
                "bytes": size,
                "linears": len(delta.low_rank),
                "low_rank_parameters": delta.low_rank_parameters,
                "whole_parameters": delta.whole_parameters,
                "base": delta.provenance.base,
                "labels": delta.provenance.labels,
            }
        )
        return
    click.echo(
        f"{out}: {size:,} bytes; low-rank products of {delta.low_rank_parameters:,} parameters in "
        f"{len(delta.low_rank)} linears and {delta.whole_parameters:,} whole parameters, for {delta.provenance.base}"
    )
