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
  taskedge export task.safetensors --to lora --max-rank 32 --out adapter/ --json
  taskedge export task.safetensors --to merged --model ./bert-base --out merged/
  taskedge export task.safetensors --to patch --out task.patch.safetensors
  taskedge export task.safetensors --to onnx --quantize int8 --out onnx/
  taskedge export task.safetensors --to onnx-adapter --out onnx/
  taskedge export task.safetensors --to openvino --out openvino/
  taskedge export task.safetensors --to executorch --out executorch/
  taskedge export task.safetensors --to gguf-lora --out task.gguf
  taskedge export task.safetensors --to gguf --gguf-base base.gguf --out merged.gguf
\b
Contents of each form, its readers and its losses: docs/interoperability.md
"""

CHECK = ("checked_rows", "largest_difference", "same_answers")

FORMS = {
    "peft_type": ("peft",),
    "max_rank": ("lora", "onnx-adapter", "gguf-lora"),
    "quantize": ("onnx",),
    "gguf_base": ("gguf",),
    "gguf_type": ("gguf",),
}
"""The forms that an option is for."""


@click.command(epilog=EPILOG)
@click.argument("delta", type=click.Path(path_type=Path))
@click.option(
    "--to",
    required=True,
    metavar="FORM",
    help="lora: an adapter folder of one rank, for peft, vLLM and others. peft: one of peft's sparse types. merged: "
    "a plain model folder, as from `taskedge merge`. patch: flat indices and absolute values per tensor, for servers "
    "that update weights in place. onnx: a graph for onnxruntime. onnx-adapter: a base graph and a file per task. "
    "openvino: the same graph for OpenVINO. executorch: a program for ExecuTorch. gguf-lora: an adapter for llama.cpp. "
    "gguf: the base's GGUF file with the delta in it.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The folder (for a patch: the file) to make."
)
@click.option(
    "--model", help="Base model: a local folder, a hub id or a GGUF file.  [default: the one the delta names]"
)
@click.option(
    "--peft-type",
    metavar="TYPE",
    help="supertuning, shira or lora.  [default: the sparse type that needs less padding; lora if neither is possible, "
    "and for entries in all neurons of a few columns]",
)
@click.option(
    "--max-rank",
    type=click.IntRange(min=1),
    metavar="N",
    help="Refuse a delta that needs a higher rank as LoRA.  [default: any rank]",
)
@click.option("--quantize", metavar="TYPE", help="Of an ONNX graph: int8 for the weights of matrix products.")
@click.option(
    "--gguf-base", type=click.Path(path_type=Path), help="The GGUF file of the base.  [default: the base, if it is one]"
)
@click.option("--gguf-type", metavar="TYPE", help="Of changed weights: same, f32, f16 or q8_0.  [default: same]")
@click.option(
    "--check-rows",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Texts for the self-check, one a line.  [default: six sentences]",
)
@click.option("--no-check", is_flag=True, help="Leave out the self-check, which computes some rows with both.")
@head_option
@replace_option
@other_base_option
@json_option
def command(
    delta: Path, to: str, out: Path, model: str | None, head: str | None, replace: bool, force: bool,
    check_rows: Path | None, no_check: bool, as_json: bool, **kwargs: Any,
) -> None:  # fmt: skip
    """Write a delta in a form that other programs read, without taskedge.

    At the end some rows go through the model and through what was written. A difference refuses the export.
    """
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    for name in kwargs:
        if to not in FORMS[name]:
            forms = " and ".join(f"--to {form}" for form in FORMS[name])
            raise InputError(f"--{name.replace('_', '-')} is for {forms}, not for --to {to}")
    if check_rows is not None:
        kwargs["rows"] = _lines_of(check_rows)
    kwargs["check"] = not no_check
    result = write(delta, out, to=to, model=model, head=head, replace=replace, force=force, **kwargs)
    if as_json:
        print_json(result_json(result) | {"to": to} | result.details)
        return
    shown = {key: value for key, value in result.details.items() if key not in CHECK}
    details = "".join(f", {key.replace('_', ' ')} {_as_text(value)}" for key, value in shown.items())
    click.echo(f"{result.out}: {result.bytes:,} bytes{details}; load it with {result.loads}")
    click.echo(check_text(result.details))


def _lines_of(path: Path) -> list[str]:
    try:
        rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}): name a text file with one row a line") from None
    if not rows:
        raise InputError(f"{path}: it has no line with text: give the rows for the self-check, one a line")
    return rows


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


def check_text(details: dict[str, Any]) -> str:
    """Return a line about the self-check of an export."""
    rows = details["checked_rows"]
    if not rows:
        return "not checked: no rows went through what was written"
    same = f", and {details['same_answers']:.1%} of answers are the same" if details["same_answers"] < 1 else ""
    return f"checked on {rows:,} rows: logits differ by at most {details['largest_difference']:.2g}{same}"


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
