"""``taskedge export``, and what ``taskedge merge`` shares with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.config_options import json_option, note, print_json
from taskedge.errors import InputError

if TYPE_CHECKING:
    from taskedge.delta.interop.export import Exported

EPILOG = """\b
Examples:
  taskedge export task.safetensors --to peft --out adapter/
  taskedge export task.safetensors --to peft --peft-type lora --out adapter/ --json
  taskedge export task.safetensors --to merged --model ./bert-base --out merged/
  taskedge export task.safetensors --to patch --out task.patch.safetensors
\b
What each form holds, who reads it and what is lossless: docs/interoperability.md
"""


@click.command(epilog=EPILOG)
@click.argument("delta", type=click.Path(path_type=Path))
@click.option(
    "--to",
    required=True,
    metavar="FORM",
    help="peft: an adapter folder for Hugging Face's peft. merged: a plain model folder, as from `taskedge merge`. "
    "patch: flat indices and absolute values per tensor, for servers that update weights in place.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder, or for a patch file, to make.")
@click.option("--model", help="Base model: a local folder or a hub id.  [default: the one the delta names]")
@click.option(
    "--peft-type",
    metavar="TYPE",
    help="supertuning, shira or lora.  [default: the sparse one that needs less padding; lora where neither can be]",
)
@click.option("--force", is_flag=True, help="Replace what is there, and apply even to a base with other values.")
@json_option
def command(
    delta: Path, to: str, out: Path, model: str | None, peft_type: str | None, force: bool, as_json: bool
) -> None:
    """Write a delta in a form that other programs read, without taskedge."""
    if peft_type is not None and to != "peft":
        raise InputError(f"--peft-type is for --to peft, not for --to {to}")
    options = {} if peft_type is None else {"peft_type": peft_type}
    done = write(delta, out, to=to, model=model, force=force, **options)
    if as_json:
        print_json({"out": done.out, "bytes": done.bytes, "to": to, **done.facts})
        return
    told = "".join(f", {key.replace('_', ' ')} {_shown(value)}" for key, value in done.facts.items())
    click.echo(f"{done.out}: {done.bytes:,} bytes{told}; load it with {done.loads}")


def write(delta: Path, out: Path, *, to: str, model: str | None, force: bool, **options: Any) -> Exported:
    """Exports the delta file on a freshly loaded base; what can be refused is refused before anything is loaded."""
    from taskedge.delta.interop.export import export, refuse_taken

    refuse_taken(out, to=to, force=force)
    from taskedge.delta.load_with_delta import load_applied

    base, loaded = load_applied(delta, model, held="loaded", force=force, say=note)
    given = {"base": model or loaded.provenance.base, "force": force, **options}
    return export(base.model, loaded, out, to=to, processor=base.images or base.tokenizer, **given)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
