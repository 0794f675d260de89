"""``taskedge info``: describe a delta file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from taskedge.cli.located_supports import drawn_layers, located, overlap_text
from taskedge.cli.shared_options import json_option, print_json, print_status
from taskedge.reporting.tables import percent_text

EPILOG = """\b
Examples:
  taskedge info task.safetensors
  taskedge info task.safetensors --json
  taskedge info task.safetensors --plot entries.png
  taskedge info spam.safetensors topics.safetensors --plot overlap.png
"""

BAR_WIDTH = 30
SHOWN_LABELS = 12
SHOWN_NAMES = 8


@click.command(epilog=EPILOG)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw where the entries lie, and overlaps, to .svg, .png or .pdf."
)
@json_option
def command(files: tuple[Path, ...], plot: Path | None, as_json: bool) -> None:
    """Describe a delta: positions of its entries, bytes per section, provenance, and the base it needs.

    For several deltas, or supports of `taskedge select`, it prints how much they overlap, beside random supports.
    """
    if plot is not None:
        from taskedge.reporting.pictures import check_picture

        check_picture(plot)
    values = located(files) if len(files) > 1 or plot is not None else {}
    description = describe(files[0]) if len(files) == 1 else {}
    if as_json:
        print_json(description | values)
    else:
        click.echo(f"{files[0]}: {description_text(description)}" if description else overlap_text(values))
    if plot is not None:
        from taskedge.reporting.support_pictures import draw_supports

        draw_supports(values, plot)
        print_status(f"wrote {plot}")


def describe(path: Path) -> dict[str, Any]:
    """Return everything that a delta file tells without its base, as plain values."""
    from taskedge.delta.delta import CLOSED_LAYERS
    from taskedge.delta.file import load, section_bytes
    from taskedge.delta.interop.lora_rank import lora_ranks, rank_text
    from taskedge.selection.support_location import block_and_kind

    delta = load(path)
    ranks = lora_ranks(delta)
    by_layer: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    for name, linear in delta.linears.items():
        layer, kind = block_and_kind(name)
        by_layer[layer] += len(linear)
        by_kind[kind] += len(linear)
    dtypes = [linear.base_dtype for linear in delta.linears.values()]
    dtypes += [product.base_dtype for product in delta.low_rank.values()]
    dtypes += [] if delta.prompt is None else [delta.prompt.base_dtype]
    parameters = delta.provenance.base_parameters
    return {
        "bytes": path.stat().st_size,
        "entries": delta.num_entries,
        "share": delta.num_entries / parameters if parameters else 0.0,
        "low_rank": {
            name: {"shape": list(product.shape), "rank": product.rank, "scale": product.scale}
            for name, product in delta.low_rank.items()
        },
        "lora_rank": max(ranks.values(), default=0),
        "lora_export": rank_text(ranks),
        "low_rank_parameters": delta.num_low_rank_parameters,
        "filters": {name: {"kind": one.kind, "rank": one.rank} for name, one in delta.filters.items()},
        "prompt": None if delta.prompt is None else asdict(delta.prompt.layout),
        "prompt_parameters": 0 if delta.prompt is None else delta.prompt.num_parameters,
        "whole": {name: list(tensor.shape) for name, tensor in delta.full_parameters.items()},
        "whole_parameters": delta.num_full_parameters,
        "heads": {
            name: {
                "task": head.provenance.task,
                "labels": list(head.provenance.labels),
                "whole": {parameter: list(tensor.shape) for parameter, tensor in head.full_parameters.items()},
                "own_entries": sum(map(len, head.gated.values())),
                "own_rows": sum(int(rows.gates.sum()) for rows in head.gated.values()),
            }
            for name, head in delta.heads.items()
        },
        "base_dtype": next(iter(dtypes), ""),
        "pattern": _pattern(delta.linears),
        "by_layer": dict(by_layer),
        "by_kind": dict(by_kind),
        "open_layers": list(delta.linears) if CLOSED_LAYERS in delta.provenance.training else None,
        "closed_layers": delta.provenance.training.get(CLOSED_LAYERS),
        "sections": section_bytes(path),
        "provenance": asdict(delta.provenance),
    }


def description_text(description: dict[str, Any]) -> str:
    """Return the result of :func:`describe` as text, beginning with the size of the file."""
    provenance = description["provenance"]
    lines = [
        f"{description['bytes']:,} bytes",
        f"base      {provenance['base'] or 'not named'} ({provenance['base_parameters']:,} parameters, "
        f"{description['base_dtype']})",
        f"task      {provenance['task'] or 'not named'}: {_labels_text(provenance['labels'])}",
        f"entries   {description['entries']:,} ({percent_text(description['share'], 4)}) by rule "
        f"{provenance['rule']!r}, {provenance['allocation']}",
    ]
    if description["pattern"]:
        lines.append(f"pattern   {_pattern_text(description['pattern'])}")
    if description["low_rank"]:
        ranks = sorted({product["rank"] for product in description["low_rank"].values()})
        lines.append(
            f"low rank  {description['low_rank_parameters']:,} parameters: products of rank "
            f"{', '.join(map(str, ranks))} in {len(description['low_rank'])} linears"
        )
    if description["filters"]:
        kinds = sorted({f"{one['kind']} of rank {one['rank']}" for one in description["filters"].values()})
        lines.append(f"filters   {', '.join(kinds)} in {len(description['filters'])} linears: cannot be fused")
    if (layout := description["prompt"]) is not None:
        repeated = ", and again before the value" if layout["repeat"] else ""
        segments = ", segments" if layout["segments"] else ""
        lines.append(
            f"soft prompt  {layout['length']} tokens {layout['where']} the text{repeated} for each of "
            f"{len(layout['slots'])} slots{segments}: {description['prompt_parameters']:,} numbers; cannot be fused"
        )
    if description["lora_export"]:
        lines.append(f"as LoRA   {description['lora_export']}")
    lines.append(f"in full   {description['whole_parameters']:,} parameters: {_names_text(description['whole'])}")
    for name, head in description["heads"].items():
        own = f"; {head['own_entries']:,} own entries in {head['own_rows']:,} rows" if head["own_rows"] else ""
        lines.append(f"head      {name}: {head['task']}, {_labels_text(head['labels'])}{own}")
    if provenance["training"]:
        shown = {key: value for key, value in provenance["training"].items() if key != "closed_layers"}
        lines.append("training  " + ", ".join(f"{key}={value}" for key, value in shown.items()))
    lines.append(f"sections  {_sections_text(description['sections'])}")
    if description["open_layers"] is not None:
        lines += ["", drawn_layers(description["open_layers"], description["closed_layers"])]
    for title in ("layer", "kind"):
        counts = description[f"by_{title}"]
        if not counts:  # low-rank products only
            break
        lines += ["", f"entries by {title}"]
        width, largest = max(map(len, counts)), max(counts.values())
        for name, count in counts.items():
            lines.append(f"  {name:{width}}  {count:>8,}  {'#' * max(1, round(BAR_WIDTH * count / largest))}")
    return "\n".join(lines)


def _names_text(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    known = sorted(names)
    more = f" and {len(known) - SHOWN_NAMES} more" if len(known) > SHOWN_NAMES else ""
    return ", ".join(known[:SHOWN_NAMES]) + more or "none"


def _sections_text(sections: Mapping[str, int]) -> str:
    """Return the bytes of each kind of section, largest first; a kind that layers have is summed over them."""
    of_kind: dict[str, list[int]] = {}
    for name, size in sections.items():
        of_kind.setdefault(name.partition("/")[0], []).append(size)
    ordered = sorted(of_kind.items(), key=lambda found: (-sum(found[1]), found[0]))
    return ", ".join(f"{kind} {sum(sizes):,}" + f" in {len(sizes)}" * (len(sizes) > 1) for kind, sizes in ordered)


def _labels_text(labels: Sequence[str]) -> str:
    """Return the labels in quotes, so that commas, blanks and line breaks in them can be seen."""
    more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
    return ", ".join(map(repr, labels[:SHOWN_LABELS])) + more or "no labels"


def _pattern(linears: dict[str, Any]) -> dict[str, Any] | None:
    """Return the N:M pattern that the entries have, whether or not the provenance names one."""
    from taskedge.selection.patterns import find_pattern

    pattern = find_pattern(linears.values())
    if pattern is None:
        return None
    last_widths = {linear.shape[1] % pattern.m for linear in linears.values()} - {0}
    return {
        "name": str(pattern),
        "linears": len(linears),
        "rest_groups": {str(width): min(pattern.n, width) for width in sorted(last_widths)},
    }


def _pattern_text(pattern: dict[str, Any]) -> str:
    last_groups = [f"{kept} of a last group of {width}" for width, kept in pattern["rest_groups"].items()]
    text = f"{pattern['name']} holds in all {pattern['linears']} linears"
    return f"{text} ({', '.join(last_groups)})" if last_groups else text
