"""``taskedge merge``."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from taskedge.cli.options import json_option, note, print_json

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
    from taskedge.errors import InputError

    if out.exists() and not force:
        raise InputError(f"{out} exists: name another folder with --out, or replace it with --force")
    if out.exists() and not (out.is_dir() and ((out / "config.json").exists() or not any(out.iterdir()))):
        raise InputError(f"{out} is there and is no model folder, so --force leaves it alone: name another with --out")
    from safetensors import SafetensorError
    from transformers import logging

    from taskedge.backbone.load import AUTO
    from taskedge.delta.use import load_applied

    base, applied = load_applied(delta, model, force=force, say=note)
    logging.disable_progress_bar()
    aside = out.resolve().with_name(f".{out.resolve().name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        base.model.save_pretrained(aside)  # type: ignore[operator]
        (base.images or base.tokenizer).save_pretrained(aside)
        if out.exists():
            shutil.rmtree(out)
        aside.rename(out)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{out}: cannot be written ({why})") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if as_json:
        print_json({"out": out, "bytes": size})
    else:
        loader = AUTO[applied.provenance.task]
        click.echo(f"{out}: {size:,} bytes; load it with {loader}.from_pretrained({str(out)!r})")
