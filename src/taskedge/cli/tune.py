"""``taskedge tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskedge.cli.config_options import force_option, given, json_option, note, options_of, print_json
from taskedge.cli.delta_options import figures
from taskedge.errors import Interrupted
from taskedge.training.config_file import settle
from taskedge.training.tune_config import TuneSettings

EPILOG = """\b
Examples:
  taskedge tune --model bert-base-uncased --train reviews.csv --text review --label sentiment
  taskedge tune --model ./vit-base --train photos/ --eval heldout/
  taskedge tune --model ./smollm2 --train chats.jsonl --prompt question --response answer
  taskedge tune --config run.toml --lr 1e-2 --out task.safetensors
  taskedge tune --config run.toml --form lora --rank 4
  taskedge tune --config run.toml --dry-run
  taskedge tune --config run.toml --memory 700MB
  taskedge tune --config run.toml --resume
"""


@click.command(epilog=EPILOG)
@options_of(TuneSettings)
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of these settings; flags win.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained and what it costs; write nothing.")
@force_option
@json_option
def command(config: Path | None, resume: bool, dry_run: bool, force: bool, as_json: bool, **flags: Any) -> None:
    """Train a share of a model's own weights for a task, and write them as a delta file.

    The kind of task follows from the data: texts or images with labels, texts with numbers, prompts with responses,
    or plain text. The weights are chosen by looking at a few batches of it; only these (and the head) are trained.
    The file appears when it is whole; a run that was killed goes on with --resume.
    """
    settings = settle(given(flags), config)
    if dry_run:
        from taskedge.training.dry_run import plan

        planned = plan(settings, say=note)
        if as_json:
            print_json(planned)
        else:
            _print_plan(planned)
        return
    from taskedge.training import tune as training

    try:
        result = training.tune(settings, resume=resume, force=force, say=note)
    except KeyboardInterrupt:
        if training.interrupted(training.run_folder(settings)):
            raise Interrupted("interrupted: go on with --resume") from None
        raise
    if as_json:
        print_json(training.as_json(result))
        return
    parts = [f"{result.entries:,} entries ({result.share:.3%})"] if result.entries else []
    parts += [f"low-rank products of {result.low_rank:,} parameters"] if result.low_rank else []
    parts += [f"a head of {result.head:,} parameters"] if result.head else []
    click.echo(f"{result.out}: {' and '.join(parts)}")
    click.echo(
        f"{result.file_bytes:,} bytes, {result.steps} steps in {result.seconds:.0f} s, training loss "
        f"{result.train_loss:.3f}, peak memory {result.peak_memory / 1e6:.0f} MB"
    )
    if result.predicted is not None:
        memory = result.predicted["memory"]
        click.echo(
            f"predicted: peak memory {memory['peak'] / 1e6:.0f} MB, {result.predicted['seconds']:.2f} s a step; "
            f"observed: {result.run_peak_memory / 1e6:.0f} MB, {result.seconds_per_step:.2f} s"
        )
    if result.quality is not None:
        click.echo(f"on {settings.eval}: {figures(result.quality)} ({result.quality['rows']:,} rows)")


def _print_plan(plan: dict[str, Any]) -> None:
    from taskedge.training.memory.memory_report import ladder_text

    linears, products = plan["linears"], plan["low_rank"]
    width = max(len(linear["name"]) for linear in (*linears, *products))
    shapes = {linear["name"]: "x".join(map(str, linear["shape"])) for linear in (*linears, *products)}
    if linears:
        click.echo(f"{'linear':{width}}  {'shape':>12}  {'entries':>8}  {'columns':>8}")
    for linear in linears:
        name = linear["name"]
        click.echo(f"{name:{width}}  {shapes[name]:>12}  {linear['entries']:>8,}  {linear['distinct_columns']:>8,}")
    if products:
        click.echo(f"{'low-rank linear':{width}}  {'shape':>12}  {'rank':>8}")
    for product in products:
        click.echo(f"{product['name']:{width}}  {shapes[product['name']]:>12}  {product['rank']:>8,}")
    kept = (
        [f"{plan['stored_bytes_per_token']:,} bytes per token ({plan['stored_columns']:,} columns)"] if linears else []
    )
    kept += ["the whole input of every low-rank linear"] if products else []
    head = f", and a head of {plan['head_parameters']:,}" if plan["head_parameters"] else ""
    classes = f"{len(plan['labels'])} classes, " if plan["labels"] else ""
    click.echo(
        f"\n{plan['entries']:,} of {plan['model_parameters']:,} parameters ({plan['share']:.4%}) by rule "
        f"{plan['rule']!r}{head}; {plan['task']}, {classes}"
        f"{plan['train_rows']:,} rows\n"
        f"form {plan['form']}: {plan['trained_parameters']:,} numbers train beside the head, at a learning rate of "
        f"{plan['lr']:g}\n"
        f"kept for the backward pass beyond a frozen model: {' and '.join(kept)}\n"
        f"optimiser state: {plan['optimizer_bytes']:,} bytes\n"
        f"{plan['steps']:,} steps of {plan['seconds_per_step']:.2f} s (measured on one): "
        f"about {plan['seconds'] / 60:.1f} minutes\n\n"
        f"{ladder_text(plan['memory'])}\nnothing was written"
    )
