"""``taskedge tune``: train a delta."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from taskedge.cli.inference_options import measures_text
from taskedge.cli.shared_options import (
    force_option,
    given_flags,
    json_option,
    options_of,
    print_json,
    print_status,
)
from taskedge.errors import Interrupted
from taskedge.reporting.tables import columns, count_text, percent_text
from taskedge.training.config import load_config
from taskedge.training.tune_config import TuneConfig

EPILOG = """\b
Examples:
  taskedge tune --model bert-base-uncased --train reviews.csv --text review --label sentiment
  taskedge tune --model ./vit-base --train photos/ --eval heldout/
  taskedge tune --model ./smollm2 --train chats.jsonl --prompt question --response answer
  taskedge tune --model ./smollm2 --train chats.jsonl --messages messages
  taskedge tune --model ./smollm2 --train dialogues.jsonl --form prompt --prompt-where after --prompt-segments
  taskedge tune --config run.toml --lr 1e-2 --out task.safetensors
  taskedge tune --config run.toml --form lora --rank 4
  taskedge tune --config run.toml --form taps --gate-penalty 1 --gate-threshold 0.1
  taskedge tune --config run.toml --dry-run
  taskedge tune --config run.toml --memory 700MB
  taskedge tune --config run.toml --resume
  taskedge tune --config run.toml --validation 10% --eval-every 20 --early-stop 3 --keep best
  taskedge tune --model ./minilm --train new.csv --from-delta task.safetensors --out task2.safetensors
"""


@click.command(epilog=EPILOG)
@options_of(TuneConfig)
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of these settings; flags win.")
@click.option("--resume", is_flag=True, help="Continue the interrupted run of --out.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained; train and write nothing.")
@force_option
@json_option
def command(config: Path | None, resume: bool, dry_run: bool, force: bool, as_json: bool, **flags: Any) -> None:
    """Train a share of a model's own weights for a task, and write them as a delta file.

    The kind of task is inferred from the data: texts or images with labels, texts with numbers, prompts with responses,
    or plain text. A few batches decide which weights are trained; only these and the head change. The file appears when
    it is complete. An interrupted run continues with --resume.
    """
    settings = load_config(TuneConfig, given_flags(flags), config)
    if dry_run:
        _dry_run(settings, as_json)
        return
    from taskedge.training import tune as training
    from taskedge.training.tune_folder import is_interrupted, run_folder

    try:
        result = training.tune(settings, resume=resume, force=force, log=print_status)
    except KeyboardInterrupt:
        if is_interrupted(run_folder(settings)):
            raise Interrupted("interrupted: continue with --resume") from None
        raise
    if as_json:
        print_json(training.as_json(result))
        return
    parts = []
    if result.entries:
        parts.append(f"{count_text(result.entries, 'entry', 'entries')} ({percent_text(result.share)})")
    if result.low_rank:
        parts.append(f"low-rank products of {result.low_rank:,} parameters")
    if result.head:
        parts.append(f"a head of {result.head:,} parameters")
    click.echo(f"{result.out}: {' and '.join(parts)}")
    if rank := _lora_rank(Path(result.out)):
        click.echo(f"exported as LoRA: {rank}")
    click.echo(
        f"{result.file_bytes:,} bytes, {count_text(result.steps, 'step')} in {result.seconds:.0f} s, training loss "
        f"{result.train_loss:.3f}, peak memory {result.peak_memory / 1e6:.0f} MB"
    )
    if result.predicted is not None:
        memory = result.predicted["memory"]
        click.echo(
            f"predicted: peak memory {memory['peak'] / 1e6:.0f} MB, {result.predicted['seconds']:.2f} s a step; "
            f"observed: {result.run_peak_memory / 1e6:.0f} MB, {result.seconds_per_step:.2f} s"
        )
    if result.quality is not None:
        click.echo(f"on {settings.eval}: {measures_text(result.quality)} ({result.quality['rows']:,} rows)")


def _lora_rank(delta: Path) -> str:
    """Return a line about the rank that an export of the delta to LoRA has."""
    from taskedge.delta.file import load
    from taskedge.delta.interop.lora_rank import lora_ranks, rank_text

    return rank_text(lora_ranks(load(delta)))


def _dry_run(settings: TuneConfig, as_json: bool) -> None:
    from taskedge.training.dry_run import dry_run

    plan = dry_run(settings, log=print_status)
    if as_json:
        print_json(plan)
    else:
        click.echo(_plan_text(plan))


def _plan_text(plan: dict[str, Any]) -> str:
    """Return the plan of a run as text: tables of what is trained, and what follows from them."""

    def shape(linear: dict[str, Any]) -> str:
        return "x".join(map(str, linear["shape"]))

    parts, kept = [], []
    if plan["linears"]:
        rows = [["linear", "shape", "entries", "columns", "rows"]]
        for linear in plan["linears"]:
            counts = [f"{linear[count]:,}" for count in ("entries", "distinct_columns", "distinct_rows")]
            rows.append([linear["name"], shape(linear), *counts])
        parts.append(columns(rows))
        if plan["stored_columns"] is not None:
            stored = count_text(plan["stored_columns"], "column")
            kept.append(f"{plan['stored_bytes_per_token']:,} bytes per token ({stored})")
    if plan["low_rank"]:
        rows = [["low-rank linear", "shape", "rank"]]
        rows += [[product["name"], shape(product), f"{product['rank']:,}"] for product in plan["low_rank"]]
        parts.append(columns(rows))
        kept.append("the full input of every low-rank linear")
    if plan["whole_layers"]:
        rows = [["gated layer", "shape", "parameters"]]
        rows += [[layer["name"], shape(layer), f"{math.prod(layer['shape']):,}"] for layer in plan["whole_layers"]]
        parts.append(columns(rows))
        kept.append("the full input of every gated layer, and the changed weight of each open one")
    watched = []
    if plan["held_out_rows"]:
        watched.append(f"{plan['held_out_rows']:,} rows are held out")
    if plan["eval_every"]:
        watched.append(f"held-out loss every {count_text(plan['eval_every'], 'step')}")
    if plan["early_stop"]:
        watched.append(f"the run ends after {count_text(plan['early_stop'], 'evaluation')} without a new best")
    if plan["eval_every"]:
        watched.append(f"the {plan['keep']} values are written")
    if plan["class_weights"]:
        weights = ", ".join(f"{label!r} {weight:.3g}" for label, weight in list(plan["class_weights"].items())[:12])
        watched.append(f"weights of classes in the loss: {weights}")
    if plan["from_delta"]:
        watched.append(f"continues from {plan['from_delta']}")
    head = f", and a head of {plan['head_parameters']:,}" if plan["head_parameters"] else ""
    whole = sum(math.prod(layer["shape"]) for layer in plan["whole_layers"])
    classes = f"{len(plan['labels'])} classes, " if plan["labels"] else ""
    parts.append(
        f"{plan['entries'] or whole:,} of {plan['model_parameters']:,} parameters ({percent_text(plan['share'], 4)}) "
        f"by rule {plan['rule']!r}{head}; {plan['task']}, {classes}{plan['train_rows']:,} rows\n"
        f"form {plan['form']}: {plan['trained_parameters']:,} values are trained beside the head, at a learning rate "
        f"of {plan['lr']:g}\n"
        f"kept for the backward pass beyond a frozen model: {' and '.join(kept)}\n"
        f"optimizer state: {plan['optimizer_bytes']:,} bytes\n"
        f"{count_text(plan['steps'], 'step')}; `taskedge estimate` with the same options measures time and memory"
    )
    if watched:
        parts.append("; ".join(watched))
    parts.append("nothing was written")
    return "\n\n".join(parts)
