"""``taskedge merge``: short for ``taskedge export --to merged``."""

from __future__ import annotations

from pathlib import Path

import click

from taskedge.cli.config_options import json_option, print_json
from taskedge.cli.export import write

EPILOG = """\b
Examples:
  taskedge merge task.safetensors --out merged/
  taskedge merge task.safetensors --model ./bert-base --out merged/
"""


@click.command(epilog=EPILOG)
@click.argument("delta", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to make.")
@click.option("--model", help="Base model: a local folder or a hub id.  [default: the one the delta names]")
@click.option("--force", is_flag=True, help="Replace the folder, and apply even to a base with other values.")
@json_option
def command(delta: Path, out: Path, model: str | None, force: bool, as_json: bool) -> None:
    """Write a plain model folder that holds the delta's values: `from_pretrained` loads it, without taskedge."""
    done = write(delta, out, to="merged", model=model, force=force)
    if as_json:
        print_json({"out": done.out, "bytes": done.bytes})
    else:
        click.echo(f"{done.out}: {done.bytes:,} bytes; load it with {done.loads}")
