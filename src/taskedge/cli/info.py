"""``taskedge info``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from taskedge.cli.config_options import json_option, print_json

EPILOG = """\b
Examples:
  taskedge info task.safetensors
  taskedge info task.safetensors --json
"""


@click.command(epilog=EPILOG)
@click.argument("delta", type=click.Path(path_type=Path))
@json_option
def command(delta: Path, as_json: bool) -> None:
    """Say what a delta holds: where its entries sit, bytes per section, how it was made, and the base it needs."""
    about = describe(delta)
    if as_json:
        print_json(about)
        return
    made = about["provenance"]
    click.echo(f"{delta}: {about['bytes']:,} bytes")
    click.echo(
        f"base      {made['base'] or 'not named'} ({made['base_parameters']:,} parameters, {about['base_dtype']})"
    )
    click.echo(f"task      {made['task'] or 'not named'}: {', '.join(made['labels'][:12]) or 'no labels'}")
    click.echo(f"entries   {about['entries']:,} ({about['share']:.4%}) by rule {made['rule']!r}, {made['allocation']}")
    if about["pattern"]:
        click.echo(f"pattern   {_in_words(about['pattern'])}")
    if about["low_rank"]:
        ranks = sorted({product["rank"] for product in about["low_rank"].values()})
        click.echo(
            f"low rank  {about['low_rank_parameters']:,} parameters: products of rank "
            f"{', '.join(map(str, ranks))} in {len(about['low_rank'])} linears"
        )
    click.echo(f"whole     {about['whole_parameters']:,} parameters: {', '.join(sorted(about['whole'])) or 'none'}")
    if made["training"]:
        click.echo("training  " + ", ".join(f"{key}={value}" for key, value in made["training"].items()))
    click.echo("sections  " + ", ".join(f"{name} {size:,}" for name, size in about["sections"].items()))
    for title in ("layer", "kind"):
        counts = about[f"by_{title}"]
        if not counts:  # low-rank products only
            break
        click.echo(f"\nentries by {title}")
        width = max(map(len, counts))
        most = max(counts.values())
        for name, count in counts.items():
            click.echo(f"  {name:{width}}  {count:>8,}  {'#' * max(1, round(30 * count / most))}")


def describe(path: Path) -> dict[str, Any]:
    """All that can be said of a delta file without its base, as plain values."""
    from taskedge.delta.file import load, section_bytes

    delta = load(path)
    layers: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for name, linear in delta.linears.items():
        layer, kind = _split(name)
        layers[layer] += len(linear)
        kinds[kind] += len(linear)
    dtypes = [linear.base_dtype for linear in delta.linears.values()]
    dtypes += [product.base_dtype for product in delta.low_rank.values()]
    parameters = delta.provenance.base_parameters
    return {
        "bytes": path.stat().st_size,
        "entries": delta.entries,
        "share": delta.entries / parameters if parameters else 0.0,
        "low_rank": {
            name: {"shape": list(product.shape), "rank": product.rank, "scale": product.scale}
            for name, product in delta.low_rank.items()
        },
        "low_rank_parameters": delta.low_rank_parameters,
        "whole": {name: list(tensor.shape) for name, tensor in delta.whole.items()},
        "whole_parameters": delta.whole_parameters,
        "base_dtype": next(iter(dtypes), ""),
        "pattern": _pattern(delta.linears),
        "by_layer": dict(layers),
        "by_kind": dict(kinds),
        "sections": section_bytes(path),
        "provenance": asdict(delta.provenance),
    }


def _pattern(linears: dict[str, Any]) -> dict[str, Any] | None:
    """The N:M pattern that the entries themselves hold, whatever the delta says of how they were chosen."""
    from taskedge.selection.patterns import find_pattern

    pattern = find_pattern(linears.values())
    if pattern is None:
        return None
    rests = {linear.shape[1] % pattern.m for linear in linears.values()} - {0}
    return {
        "name": str(pattern),
        "linears": len(linears),
        "rest_groups": {str(width): min(pattern.n, width) for width in sorted(rests)},
    }


def _in_words(pattern: dict[str, Any]) -> str:
    rests = [f"{kept} of a last group of {width}" for width, kept in pattern["rest_groups"].items()]
    return f"{pattern['name']} holds in all {pattern['linears']} linears" + (f" ({', '.join(rests)})" if rests else "")


def _split(name: str) -> tuple[str, str]:
    """A linear's name cut at its layer number: ``a.layer.3.output.dense`` -> (``a.layer.3``, ``output.dense``)."""
    parts = name.split(".")
    place = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: place + 1]) or name, ".".join(parts[place + 1 :]) or name
