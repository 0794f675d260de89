"""``taskedge select``: choose the weights to train, and write them as a support file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskedge.cli.shared_options import (
    force_option,
    given_flags,
    json_option,
    options_of,
    print_json,
    print_status,
    refuse_existing,
    refuse_input_as_output,
)
from taskedge.training.config import load_config
from taskedge.training.selection_settings import GATE_FIELDS, SELECTION_FIELDS
from taskedge.training.tune_config import TuneConfig

EPILOG = """\b
Examples:
  taskedge select --model ./minilm --train reviews.csv --budget 0.1% --out support.safetensors
  taskedge select --config run.toml --rule gradient --out support.safetensors
  taskedge select --config run.toml --support diff-pruning --budget 0.5% --out support.safetensors
  taskedge tune --model ./minilm --train reviews.csv --support-file support.safetensors
"""

SHOWN = (
    *("model", "train", "task", "text", "label", "prompt", "response", "source", "target", "tokens", "tags"),
    *("turns", "messages"),
    *("label_separator", "image", "dtype", "rank"),
    *("head_warmup", "batch_size", "micro_batch", "max_length", "strict", "seed", "threads"),
    *("head_lr", "clip", "accumulate", "bf16", "recompute", "checkpoint_every"),
    *(*SELECTION_FIELDS, "support", *GATE_FIELDS),
)
"""Settings that a selection reads, with those of the data."""


@click.command(epilog=EPILOG)
@options_of(TuneConfig, *(name for name in TuneConfig.model_fields if name not in SHOWN))
@click.option("--config", type=click.Path(path_type=Path), help="TOML file of a run of `tune`, without its out.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The support file to write.")
@click.option("--resume", is_flag=True, help="Continue the interrupted selection of --out by gates.")
@force_option
@json_option
def command(config: Path | None, out: Path, resume: bool, force: bool, as_json: bool, **flags: Any) -> None:
    """Choose the weights to train for a task, and write them as a support file.

    The file serves other machines: `taskedge tune --support-file` trains its entries on a device, to the same bits as a
    run that selects them. The file names no weights, but has digests of the base, and another base is refused.
    """
    settings = load_config(TuneConfig, given_flags(flags), config)
    refuse_existing([out], force or resume)
    refuse_input_as_output(out, settings.train, Path(settings.model))
    from taskedge.training.select_run import select_to_file

    result = select_to_file(settings, out, resume=resume, force=force, log=print_status)
    if as_json:
        print_json(result.as_json())
        return
    click.echo(f"{out}: {result.text}")
    click.echo(f"{result.file_bytes:,} bytes in {result.seconds:.0f} s, peak memory {result.peak_memory / 1e6:.0f} MB")
