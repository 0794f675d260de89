"""``taskedge combine``: one delta of several, or one that forgets a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.named_deltas import NamedDelta, NamedPath
from taskedge.cli.shared_options import (
    Number,
    force_option,
    json_option,
    print_json,
    print_status,
    refuse_existing,
    refuse_input_as_output,
)
from taskedge.errors import InputError

if TYPE_CHECKING:
    from taskedge.training.inference import Inference

EPILOG = """\b
Examples:
  taskedge combine sentiment.safetensors spam.safetensors --out both.safetensors
  taskedge combine a.safetensors b.safetensors --method ties --density 0.7 --out both.safetensors
  taskedge combine a.safetensors b.safetensors --method selective --data a.csv --data b.csv --out both.safetensors
  taskedge combine --subtract spam.safetensors --out without.safetensors
  taskedge eval both.safetensors --head spam --data heldout.csv
"""
METHOD_NAMES = ("arithmetic", "selective", "ties", "dare", "breadcrumbs")
IMPORTANCE_BATCH = 32


@click.command(epilog=EPILOG)
@click.argument("deltas", nargs=-1, type=NamedDelta())
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The delta file to write.")
@click.option("--subtract", multiple=True, type=NamedDelta(), help="Subtract this delta, to forget its task.")
@click.option(
    "--method",
    default="arithmetic",
    show_default=True,
    type=click.Choice(METHOD_NAMES),
    help="How changes are merged; docs/combine.md defines each method.",
)
@click.option(
    "--weight", multiple=True, type=Number(), help="Factor of all deltas, or one for each, in order.  [default: 1]"
)
@click.option(
    "--density",
    type=Number(),
    help="Share of each delta's entries to keep.  [default: arithmetic 1, breadcrumbs 0.9, others 0.5]",
)
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Labeled data of each delta, in order: for the importance of entries.",
)
@click.option(
    "--importance",
    type=click.Choice(["change", "weight"]),
    help="What the gradient is multiplied by: the change by the task, or the weight.  [default: change]",
)
@click.option(
    "--importance-at",
    type=click.Choice(["base", "tuned"]),
    help="Weights at which the gradient is taken.  [default: base]",
)
@click.option("--batches", default=8, show_default=True, type=click.IntRange(1), help="Batches of 32 rows of --data.")
@click.option("--densify", is_flag=True, help="Make entries of low-rank products.")
@click.option("--seed", default=0, show_default=True, type=int, help="Draws the entries that dare keeps.")
@click.option(
    "--model", help="Base model: a local folder, a hub id or a GGUF file.  [default: the one the first delta names]"
)
@force_option
@json_option
def command(
    deltas: tuple[NamedPath, ...], out: Path, subtract: tuple[NamedPath, ...], method: str, weight: tuple[float, ...],
    density: float | None, data: tuple[Path, ...], importance: str | None, importance_at: str | None, batches: int,
    densify: bool, seed: int, model: str | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Combine deltas of one base into one delta, by index.

    Each delta keeps its own head under its name (`eval --head NAME`). The overlap of the supports is printed first.
    """
    from taskedge.delta.combination.combine import combine
    from taskedge.delta.combination.importance import entry_importance
    from taskedge.delta.file import load, save
    from taskedge.io.lock import hold_lock

    every = [*deltas, *subtract]
    if not every:
        raise InputError("name one or more delta files, or one to forget with --subtract")
    _check_options(method, data, importance, importance_at, len(every))
    click.get_current_context().with_resource(hold_lock(out))
    refuse_existing([out], force)
    refuse_input_as_output(out, *(path for _, path in every), *data)
    loaded = [load(path) for _, path in every]
    base = _plain_base(every[0][1], next(iter(loaded[0].heads), None), model)
    scores = None
    if method == "selective":
        scores = []
        for (name, path), delta, rows in zip(every, loaded, data, strict=True):
            if len(delta.heads) > 1:
                raise InputError(f"{path}: method selective needs the gradient of one task, and it has several heads")
            inference = _plain_inference(path, rows, model)
            print_status(f"{name}: importance of {delta.num_entries:,} entries from {rows}")
            scores.append(
                entry_importance(
                    inference.base.model, delta, _batches(inference, batches),
                    kind=importance or "change", at=importance_at or "base", densify=densify,  # type: ignore[arg-type]
                )
            )  # fmt: skip
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        print_status(line)

    combined = combine(
        loaded[: len(deltas)], base, method=method, weights=_weights(weight), density=density,
        subtract=loaded[len(deltas) :], names=[name for name, _ in every], importance=scores, densify=densify,
        seed=seed, log=log,
    )  # fmt: skip
    save(combined, out)
    result = {
        "out": out, "bytes": out.stat().st_size, "entries": combined.num_entries, "heads": list(combined.heads),
        "method": method, "notes": lines,
    }  # fmt: skip
    if as_json:
        print_json(result)
    else:
        heads = f", heads {', '.join(combined.heads)} (choose one with --head)" if combined.heads else ""
        click.echo(f"{out}: {result['bytes']:,} bytes, {combined.num_entries:,} entries{heads}")


def _weights(given: tuple[float, ...]) -> list[float] | float:
    if len(given) > 1:
        return list(given)
    return given[0] if given else 1.0


def _check_options(
    method: str, data: tuple[Path, ...], importance: str | None, importance_at: str | None, count: int
) -> None:
    if method != "selective" and (data or importance or importance_at):
        raise InputError(f"--data, --importance and --importance-at are for --method selective, not for {method}")
    if method == "selective" and len(data) != count:
        raise InputError(f"--method selective needs labeled data of each delta: give --data {count} times, in order")


def _plain_base(path: Path, head: str | None, model: str | None) -> Any:
    """Return the base of a delta without the delta, as it was stored in training."""
    from taskedge.delta.apply import revert
    from taskedge.delta.load_with_delta import load_with_delta

    base, _ = load_with_delta(path, model, head=head, log=print_status)
    return revert(base.model)


def _plain_inference(path: Path, data: Path, model: str | None) -> Inference:
    """Return the data of a delta's task and its base, without the delta."""
    from taskedge.delta.apply import revert
    from taskedge.training.inference import prepare_inference

    inference = prepare_inference(path, data, answers=True, model=model, log=print_status)
    revert(inference.base.model)
    return inference


def _batches(inference: Inference, count: int) -> list[Any]:
    collate = inference.task.collate(inference.base)
    rows = inference.rows[: count * IMPORTANCE_BATCH]
    return [collate(rows[start : start + IMPORTANCE_BATCH]) for start in range(0, len(rows), IMPORTANCE_BATCH)]
