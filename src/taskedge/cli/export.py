"""``taskedge export``, and the function that it shares with ``taskedge merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.shared_options import (
    head_option,
    json_option,
    other_base_option,
    print_json,
    print_status,
    refuse_input_as_output,
    replace_option,
)
from taskedge.errors import InputError

if TYPE_CHECKING:
    from taskedge.delta.interop.export import ExportResult

EPILOG = """\b
Examples:
  taskedge export task.safetensors --to peft --out adapter/
  taskedge export task.safetensors --to peft --peft-type lora --out adapter/ --json
  taskedge export task.safetensors --to merged --model ./bert-base --out merged/
  taskedge export task.safetensors --to patch --out task.patch.safetensors
\b
Contents of each form, its readers and its losses: docs/interoperability.md
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
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The folder (for a patch: the file) to make."
)
@click.option("--model", help="Base model: a local folder or a hub id.  [default: the one the delta names]")
@click.option(
    "--peft-type",
    metavar="TYPE",
    help="supertuning, shira or lora.  [default: the sparse type that needs less padding; lora if neither is possible, "
    "and for entries in all neurons of a few columns]",
)
@head_option
@replace_option
@other_base_option
@json_option
def command(
    delta: Path, to: str, out: Path, model: str | None, peft_type: str | None, head: str | None, replace: bool,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write a delta in a form that other programs read, without taskedge."""
    if peft_type is not None and to != "peft":
        raise InputError(f"--peft-type is for --to peft, not for --to {to}")
    kwargs = {} if peft_type is None else {"peft_type": peft_type}
    result = write(delta, out, to=to, model=model, head=head, replace=replace, force=force, **kwargs)
    if as_json:
        print_json(result_json(result) | {"to": to} | result.details)
        return
    details = "".join(f", {key.replace('_', ' ')} {_as_text(value)}" for key, value in result.details.items())
    click.echo(f"{result.out}: {result.bytes:,} bytes{details}; load it with {result.loads}")


def write(
    delta: Path, out: Path, *, to: str, model: str | None, head: str | None, replace: bool, force: bool, **kwargs: Any
) -> ExportResult:
    """Export a delta file with a freshly loaded base. Check the output before anything is loaded."""
    from taskedge.io.atomic import require_writable
    from taskedge.io.lock import hold_lock

    refuse_input_as_output(out, delta)
    require_writable(out)
    from taskedge.delta.interop.export import check_output, export
    from taskedge.delta.load_with_delta import base_location, load_head, load_with_delta

    base = model or base_location(delta, load_head(delta, head).provenance)
    click.get_current_context().with_resource(hold_lock(out))
    check_output(out, to=to, base=base, replace=replace, force=force)
    loaded, applied = load_with_delta(delta, model, head=head, weight_storage="resident", force=force, log=print_status)
    kwargs = {"base": base, "replace": replace, "force": force, **kwargs}
    return export(loaded.model, applied, out, to=to, processor=loaded.image_processor or loaded.tokenizer, **kwargs)


def result_json(result: ExportResult) -> dict[str, Any]:
    """Return what every export reports; ``forced`` is there only if ``--force`` was needed."""
    forced = {"forced": result.forced} if result.forced else {}
    return {"out": result.out, "bytes": result.bytes, **forced}


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
