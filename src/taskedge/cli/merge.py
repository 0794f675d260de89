"""``taskedge merge``: a short form of ``taskedge export --to merged``."""

from __future__ import annotations

from pathlib import Path

import click

from taskedge.cli.export import check_text, result_json, write
from taskedge.cli.shared_options import head_option, json_option, other_base_option, print_json, replace_option

EPILOG = """\b
Examples:
  taskedge merge task.safetensors --out merged/
  taskedge merge task.safetensors --model ./bert-base --out merged/ --replace
"""


@click.command(epilog=EPILOG)
@click.argument("delta", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to make.")
@click.option(
    "--model", help="Base model: a local folder, a hub id or a GGUF file.  [default: the one the delta names]"
)
@head_option
@replace_option
@other_base_option
@json_option
def command(
    delta: Path, out: Path, model: str | None, head: str | None, replace: bool, force: bool, as_json: bool
) -> None:
    """Write a plain model folder with the delta's values in it. `from_pretrained` loads it, without taskedge."""
    result = write(delta, out, to="merged", model=model, head=head, replace=replace, force=force)
    if as_json:
        print_json(result_json(result) | result.details)
    else:
        click.echo(f"{result.out}: {result.bytes:,} bytes; load it with {result.loads}")
        click.echo(check_text(result.details))
