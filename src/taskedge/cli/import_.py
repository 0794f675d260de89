"""``taskedge import``: make a delta of a PEFT adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.shared_options import (
    force_option,
    json_option,
    print_json,
    print_status,
    refuse_existing,
    refuse_input_as_output,
)
from taskedge.errors import InputError

if TYPE_CHECKING:
    from taskedge.backbone.loading import Base

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
@click.option(
    "--model", help="Base model: a local folder, a hub id or a GGUF file.  [default: the one the adapter names]"
)
@click.option(
    "--labels", help="The classes in the adapter's order, with commas.  [default: the classes in the base's config]"
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True,
    help="Of a language model: the most tokens of a response.",
)  # fmt: skip
@force_option
@json_option
def command(
    folder: Path, out: Path, model: str | None, labels: str | None, max_new_tokens: int, force: bool, as_json: bool
) -> None:
    """Convert a PEFT LoRA adapter folder to a delta file for info, eval, predict and merge.

    Adapters of classifiers and of causal language models are read. A language model whose tokenizer has a chat template
    gets its prompts by it, any other one as plain text.
    """
    from taskedge.io.lock import hold_lock

    refuse_input_as_output(out, folder / "adapter_config.json", folder / "adapter_model.safetensors")
    refuse_existing([out], force)
    click.get_current_context().with_resource(hold_lock(out))
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder: name the folder of a PEFT adapter")
    from taskedge.delta.file import save
    from taskedge.delta.interop.peft_import import import_peft

    names = [label.strip() for label in labels.split(",")] if labels is not None else []
    delta = import_peft(folder, model, names, log=print_status, generation=lambda base: _prompts(base, max_new_tokens))
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


def _prompts(base: Base, max_new_tokens: int) -> dict[str, Any]:
    """Return how a language model's prompts are written, as ``tune`` would record it."""
    from taskedge.training.data.table import Table
    from taskedge.training.tasks.text_generation import LINE, PLAIN, TextGeneration

    task = TextGeneration(LINE if base.tokenizer.chat_template else PLAIN)
    empty = Table(Path(), [""], [""])
    return task.bind(base, empty, max_new_tokens + 1, max_new_tokens, print_status).to_provenance()
