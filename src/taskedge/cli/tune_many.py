"""``taskedge tune-many``: train several tasks at once over one base."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from taskedge.cli.inference_options import measures_text
from taskedge.cli.named_deltas import NamedDelta, NamedPath
from taskedge.cli.shared_options import (
    force_option,
    given_flags,
    json_option,
    options_of,
    print_json,
    print_status,
    progress,
    refuse_existing,
    refuse_input_as_output,
)
from taskedge.errors import InputError, Interrupted
from taskedge.reporting.tables import columns
from taskedge.training.config import load_config
from taskedge.training.many.many_config import TuneManyConfig

EPILOG = """\b
Examples:
  taskedge tune-many --model ./bert-base --task spam=sms.csv --task mood=tweets.csv --out both.safetensors
  taskedge tune-many --model ./bert-base --task a=a.csv --task b=b.csv --task c=c.csv --flops-target 1.5x
  taskedge eval both.safetensors --head spam --data heldout.csv
  taskedge serve --task both=both.safetensors
"""


@click.command(epilog=EPILOG)
@options_of(TuneManyConfig)
@click.option("--task", "tasks", multiple=True, type=NamedDelta(), help="A task: NAME=DATA; give two or more.")
@click.option("--eval", "held_out", multiple=True, type=NamedDelta(), help="Held-out data of a task: NAME=DATA.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of these settings; flags win.")
@click.option("--resume", is_flag=True, help="Continue the interrupted run of --out.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained; train and write nothing.")
@force_option
@json_option
def command(
    tasks: tuple[NamedPath, ...], held_out: tuple[NamedPath, ...], config: Path | None, resume: bool, dry_run: bool,
    force: bool, as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Train several tasks at once over one base, and write them as one delta file.

    All tasks share some entries, and each may have its own. A gate for each row of a weight chooses between the two;
    gates are trained with the entries and then frozen. `serve`, `eval --head` and all verbs that apply a delta take the
    file. An interrupted run continues with --resume.
    """
    settings = load_config(TuneManyConfig, given_flags(flags), config)
    data = _named(tasks, "--task")
    heldout = _named(held_out, "--eval")
    for name in heldout:
        if name not in data:
            raise InputError(f"--eval {name}=...: there is no --task of that name")
    if dry_run:
        _dry_run(data, settings, as_json)
        return
    refuse_existing([settings.out], force or resume)
    refuse_input_as_output(settings.out, *data.values(), *heldout.values())
    from taskedge.training.inference import prepare_inference
    from taskedge.training.many.many_folder import run_folder
    from taskedge.training.many.tune_many import tune_many
    from taskedge.training.tune_folder import is_interrupted

    with steps_shown() as on_start:
        try:
            result = tune_many(data, settings, resume=resume, force=force, log=print_status, on_start=on_start)
        except KeyboardInterrupt:
            if is_interrupted(run_folder(settings)):
                raise Interrupted("interrupted: continue with --resume") from None
            raise
    quality = {
        name: prepare_inference(settings.out, path, answers=True, head=name, log=print_status).evaluate()
        for name, path in heldout.items()
    }
    if as_json:
        print_json(asdict(result) | {"quality": quality})
        return
    click.echo(
        f"{result.out}: {result.file_bytes:,} bytes, {result.shared_entries:,} shared entries; one pass for all tasks "
        f"costs {result.cost:.2f} passes of one"
    )
    for name, own, (opened, rows) in zip(result.tasks, result.own_entries, result.own_rows, strict=True):
        measured = f"; {measures_text(quality[name])}" if name in quality else ""
        click.echo(f"  {name}: {own:,} own entries in {opened:,} of {rows:,} rows{measured}")


def _dry_run(data: dict[str, Path], settings: TuneManyConfig, as_json: bool) -> None:
    from taskedge.training.many.tune_many import plan_many

    plan = plan_many(data, settings, log=print_status)
    if as_json:
        print_json(plan)
        return
    rows = [["task", "kind", "rows", "classes", "own entries", "head"]]
    for name, task in plan["tasks"].items():
        counts = [f"{number:,}" for number in (task["own_entries"], task["head_parameters"])]
        rows.append([name, task["task"], f"{task['rows']:,}", str(len(task["labels"]) or "-"), *counts])
    click.echo(columns(rows, left=(0, 1)))
    click.echo(
        f"{plan['shared_entries']:,} shared entries, {plan['steps']:,} steps; one pass for all tasks may cost "
        f"{plan['most_passes']:g} passes of one; nothing was trained or written"
    )


@contextmanager
def steps_shown() -> Iterator[Callable[[int], Callable[[int], object]]]:
    """Yield what makes a progress line, whose length is known only when the data are read."""
    with ExitStack() as stack:
        yield lambda total: stack.enter_context(progress(total, "training", "step"))


def _named(given: tuple[NamedPath, ...], flag: str) -> dict[str, Path]:
    """Return paths by name; raise InputError for a name that is given twice."""
    found: dict[str, Path] = {}
    for name, path in given:
        if name in found:
            raise InputError(f"{flag}: two are named {name!r}: name them with NAME=DATA")
        found[name] = path
    return found
