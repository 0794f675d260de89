"""``taskedge place``: which tensors of a base and its tasks live in which memory of a chip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.named_deltas import NamedDelta, NamedPath
from taskedge.cli.plan_options import write_text
from taskedge.cli.shared_options import Number, force_option, json_option, print_json, print_status, refuse_existing
from taskedge.errors import InputError

if TYPE_CHECKING:
    from taskedge.delta.delta import Delta
    from taskedge.placement.cell_faults import CellFaults
    from taskedge.placement.chip_file import Chip

EPILOG = """\b
Examples:
  taskedge place --task sentiment=a.safetensors --task spam=b.safetensors --memory chip.toml
  taskedge place --model bert-base-uncased --memory chip.toml --minimize area --plot chip.png
  taskedge place --task a.safetensors --memory chip.toml --data heldout.csv --fault-rate 0 --fault-rate 1e-3
  taskedge place --task a.safetensors --memory chip.toml --data heldout.csv --cell-levels --bits-per-cell 2
"""


@click.command(epilog=EPILOG)
@click.option(
    "--model", help="Base model: a local folder, a hub id or a GGUF file.  [default: the one the first delta names]"
)
@click.option("--task", "tasks", multiple=True, type=NamedDelta(), help="A delta that the chip holds; repeatable.")
@click.option("--head", "heads", multiple=True, help="Head of each --task, in order, of deltas for several tasks.")
@click.option(
    "--memory", "chip_path", required=True, type=click.Path(path_type=Path), help="The chip file (docs/placement.md)."
)
@click.option(
    "--minimize",
    default="energy",
    show_default=True,
    type=click.Choice(["energy", "latency", "area"]),
    help="Joules per hour, seconds of memory accesses in a pass, or area on the die.",
)
@click.option("--solver", default="auto", show_default=True, type=click.Choice(["auto", "exhaustive", "milp"]),
              help="auto searches exhaustively on small cases.")  # fmt: skip
@click.option("--seconds", default=60.0, show_default=True, type=Number(), help="Longest time of a solver.")
@click.option("--tensors", is_flag=True, help="List the home of every tensor.")
@click.option("--data", type=click.Path(path_type=Path), help="Labeled data of the first task: measure it over faults.")
@click.option(
    "--fault-rate", "fault_rates", multiple=True, type=Number(), help="Share of cells read wrongly; repeatable."
)
@click.option("--cell-levels", is_flag=True, help="Read errors from the published levels of the cell.")
@click.option(
    "--bits-per-cell", default=1, show_default=True, type=click.IntRange(1, 4), help="Bits in a cell of values."
)
@click.option("--format", "number_format", default="adaptive:8.3", show_default=True,
              help="Stored weights: adaptive:BITS.EXPONENT or fixed:INTEGER.FRACTION.")  # fmt: skip
@click.option("--bit-mask", is_flag=True, help="Store matrices as a mask and their nonzero values.")
@click.option("--protect-mask", is_flag=True, help="Read the mask without faults.")
@click.option("--draws", default=3, show_default=True, type=click.IntRange(1), help="Draws of the faults of each rate.")
@click.option("--seed", default=0, show_default=True, type=int, help="Draws the faults.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the plan as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the plan to a .svg, .png or .pdf file.")
@json_option
@force_option
def command(
    model: str | None, tasks: tuple[NamedPath, ...], heads: tuple[str, ...], chip_path: Path, minimize: str,
    solver: str, seconds: float, tensors: bool, data: Path | None, fault_rates: tuple[float, ...], cell_levels: bool,
    bits_per_cell: int, number_format: str, bit_mask: bool, protect_mask: bool, draws: int, seed: int,
    out: Path | None, plot: Path | None, as_json: bool, force: bool,
) -> None:  # fmt: skip
    """Place the tensors of a base and its tasks in the memories of a chip, at least energy, latency or area.

    A model over published numbers of cells, not a measurement of hardware. With --data the first task is measured while
    the base's weights in non-volatile memory are read with faults.
    """
    refuse_existing([out, plot], force)
    from taskedge.reporting.pictures import check_picture

    check_picture(plot)
    _check_options(tasks, heads, data, fault_rates, cell_levels, bit_mask, protect_mask)
    from taskedge.placement.chip_file import load_chip
    from taskedge.placement.model_tensors import model_traffic, task_size, task_skeleton
    from taskedge.placement.number_formats import parse_format
    from taskedge.placement.placement_plan import make_plan

    parse_format(number_format)
    chip = load_chip(chip_path)
    deltas = _deltas(tasks, heads)
    name = model or _base_of(tasks, deltas)
    skeleton = task_skeleton(name, next(iter(deltas.values()), None))
    sizes = [task_size(task, delta, skeleton) for task, delta in deltas.items()]
    own = frozenset.intersection(*(frozenset(delta.full_parameters) for delta in deltas.values())) if deltas else None
    traffic = model_traffic(skeleton, chip.use.tokens_per_pass, own or frozenset())
    notes = []
    if traffic.assumed:
        notes.append(
            f"{len(traffic.assumed)} parameters belong to layers that are never called, so the calls of the layers "
            f"around them count: {', '.join(traffic.assumed[:3])}{', ...' if len(traffic.assumed) > 3 else ''}."
        )
    plan = make_plan(
        Path(name).name or name, chip, traffic.base, traffic.activations, sizes,
        objective=minimize, solver=solver, seconds=seconds, notes=notes,
    )  # fmt: skip
    if data is not None:
        settings = _fault_settings(plan, chip, fault_rates, cell_levels, bits_per_cell)
        plan["faults"] = _measured(
            plan, chip, tasks[0][1], heads[0] if heads else None, name, data, settings,
            {"number_format": number_format, "bit_mask": bit_mask, "protect_mask": protect_mask}, draws, seed,
        )  # fmt: skip
    if out is not None:
        import json

        write_text(out, json.dumps(plan, indent=1) + "\n")
    if plot is not None:
        from taskedge.reporting.pictures import draw_placement

        draw_placement(plan, plot)
    if as_json:
        print_json(plan)
        return
    from taskedge.reporting.placement_text import faults_text, placement_text

    click.echo(placement_text(plan, tensors=tensors))
    if "faults" in plan:
        faults = plan["faults"]
        click.echo(f"\n{faults['summary']}\n\n{faults_text(faults['rows'], faults['measure'])}")


def _check_options(
    tasks: tuple[NamedPath, ...], heads: tuple[str, ...], data: Path | None, fault_rates: tuple[float, ...],
    cell_levels: bool, bit_mask: bool, protect_mask: bool,
) -> None:  # fmt: skip
    names = [name for name, _ in tasks]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two tasks have the name {name!r}: write --task NAME=FILE")
    if heads and len(heads) != len(tasks):
        raise InputError(f"--head is given {len(heads)} times for {len(tasks)} tasks: give one for each, in order")
    if (fault_rates or cell_levels or bit_mask) and data is None:
        raise InputError("faults are measured on labeled data: give it with --data")
    if data is not None and not tasks:
        raise InputError("--data needs a --task to measure")
    if data is not None and not (fault_rates or cell_levels):
        raise InputError("--data measures a task over faults: give --fault-rate, or --cell-levels")
    if protect_mask and not bit_mask:
        raise InputError("--protect-mask needs --bit-mask")


def _deltas(tasks: tuple[NamedPath, ...], heads: tuple[str, ...]) -> dict[str, Delta]:
    from taskedge.delta.load_with_delta import load_head

    chosen = heads or (None,) * len(tasks)
    return {name: load_head(path, head) for (name, path), head in zip(tasks, chosen, strict=True)}


def _base_of(tasks: tuple[NamedPath, ...], deltas: dict[str, Delta]) -> str:
    from taskedge.delta.load_with_delta import base_location

    if not tasks:
        raise InputError("give a --model, or a --task whose delta names its base")
    name, path = tasks[0]
    base = base_location(path, deltas[name].provenance)
    if not base:
        raise InputError(f"{path}: the delta does not name its base: give it with --model")
    return base


def _fault_settings(
    plan: dict[str, Any], chip: Chip, fault_rates: tuple[float, ...], cell_levels: bool, bits_per_cell: int
) -> list[tuple[str, CellFaults]]:
    """Return the label and the faults of each row to measure."""
    from taskedge.placement.cell_faults import CellFaults
    from taskedge.placement.placement_plan import non_volatile_base

    homes = set(non_volatile_base(plan, chip).values())
    settings = [(f"{rate:g}", CellFaults.uniform(rate, bits_per_cell)) for rate in fault_rates]
    if cell_levels and homes:
        cells = {memory.name: memory.cell for memory in chip.memories if memory.name in homes}
        if len({cell.title for cell in cells.values()}) > 1:
            raise InputError(
                f"the base lives in several non-volatile memories ({', '.join(sorted(homes))}), which have levels of "
                "their own: give --fault-rate, or let one memory hold the base in the chip file"
            )
        cell = next(iter(cells.values()))
        levels = {bits: cell.levels_of(bits) for bits in range(1, bits_per_cell + 1)}
        settings.append((f"levels of {cell.title}, {bits_per_cell} bit", CellFaults.of_levels(levels, bits_per_cell)))
    return settings


def _measured(
    plan: dict[str, Any], chip: Chip, delta: Path, head: str | None, model: str, data: Path,
    settings: list[tuple[str, CellFaults]], storage: dict[str, Any], draws: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Measure the first task over faults."""
    from taskedge.cli.shared_options import progress
    from taskedge.placement.faulty_base import StorageSettings, StoredBase, measure_faults
    from taskedge.placement.placement_plan import non_volatile_base
    from taskedge.training.inference import prepare_inference

    names = list(non_volatile_base(plan, chip))
    if not names:
        raise InputError(
            "the placement puts no weight of the base into non-volatile memory, so there are no faults to measure: "
            "leave out --data, or let only non-volatile memories hold the base (the key holds in the chip file)"
        )
    inference = prepare_inference(
        delta, data, answers=True, model=model, head=head, weight_storage="resident", log=print_status
    )
    network = inference.base.model
    before = inference.evaluate()
    measure = next(iter(name for name in before if name not in ("rows", "loss")))
    stored = StoredBase(network, names, StorageSettings(**storage))
    total = sum(max(draws if faults.mean_rate() else 1, 1) for _, faults in settings)
    with progress(total, "measuring", "draw") as advance:
        rows = measure_faults(
            network, stored, settings, inference.evaluate, seed=seed, draws=draws, on_progress=advance
        )
    tables = [row["name"] for row in plan["tensors"] if row["kind"] == "task"]
    clipped = stored.clipped_values()
    summary = (
        f"{data}: {measure} {before[measure]:.4f} with weights as loaded; {len(names):,} tensors of the base are "
        f"stored as {storage['number_format']} ({clipped:,} weights beyond its range). The {len(tables)} tables of the "
        "tasks and the activations are read without faults."
    )
    return {
        "data": str(data), "measure": measure, "without_storage": before[measure], "storage": storage, "draws": draws,
        "seed": seed, "clipped_values": clipped, "summary": summary, "rows": rows,
    }  # fmt: skip
