"""Pictures of supports: where they lie, and how much they overlap. The input is plain values; matplotlib is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskedge.errors import InputError
from taskedge.reporting.pictures import open_pyplot, save_picture

MAX_SUPPORTS = 6
"""More do not fit beside each other."""
_ANNOTATED = 130
"""Numbers are printed into panels of up to this many cells."""


def draw_supports(values: Mapping[str, Any], path: Path) -> None:
    """Draw where supports lie, and below, for two or more, how much they overlap.

    Args:
        values: from :func:`taskedge.selection.support_location.location_values`.
        path: file to write; its suffix is the format.

    Raises:
        InputError: there are more supports than fit beside each other.
        TaskEdgeError: matplotlib is missing, or cannot write that format.
    """
    supports, overlaps = values["supports"], values["overlaps"]
    if len(supports) > MAX_SUPPORTS:
        raise InputError(f"{len(supports)} supports do not fit into a picture: give up to {MAX_SUPPORTS}")
    tables = [support["share_by_block"] for support in supports]
    blocks, kinds = _axes_of(tables)
    plt = open_pyplot()
    rows = 1 if len(supports) < 2 else 2
    width = max(3.2, 0.62 * len(kinds) + 0.4)
    height = 1.9 + 0.3 * len(blocks)
    columns = len(supports)
    figure = plt.figure(
        figsize=(max(5.0, 1.6 + width * columns), height * rows + (0.4 if rows == 2 else 0)), layout="constrained"
    )
    grid = figure.add_gridspec(rows, columns)
    highest = max((share for table in tables for of in table.values() for share in of.values()), default=1.0)
    for index, (support, table) in enumerate(zip(supports, tables, strict=True)):
        axes = figure.add_subplot(grid[0, index])
        image = _heatmap(axes, table, blocks, kinds, highest, "viridis", labels=index == 0)
        axes.set_title(f"{support['name']}\n{support['entries']:,} entries", loc="left", fontsize=9)
    _add_scale(figure, image, figure.axes, "share of the weights")
    if rows == 2:
        matrix = figure.add_subplot(grid[1, 0])
        _draw_pairs(matrix, [support["name"] for support in supports], overlaps)
        first = overlaps[0]
        axes = figure.add_subplot(grid[1, 1:])
        image = _heatmap(axes, first["by_block"], blocks, kinds, 1.0, "magma", labels=True)
        axes.set_title(f"shared by {first['first']} and {first['second']}", loc="left", fontsize=9)
        _add_scale(figure, image, [axes], "share of the smaller one")
    save_picture(plt, figure, path)


def _add_scale(figure: Any, image: Any, axes: Sequence[Any], label: str) -> None:
    scale = figure.colorbar(image, ax=axes, format=_percent, shrink=0.9)
    scale.set_label(label, fontsize=8)
    scale.ax.tick_params(labelsize=7)


def _axes_of(tables: Sequence[Mapping[str, Mapping[str, float]]]) -> tuple[list[str], list[str]]:
    """Return all blocks, in the order of the first tables that have them, and all kinds."""
    blocks = list(dict.fromkeys(block for table in tables for block in table))
    return blocks, list(dict.fromkeys(kind for table in tables for of_block in table.values() for kind in of_block))


def _heatmap(
    axes: Any,
    table: Mapping[str, Mapping[str, float]],
    blocks: Sequence[str],
    kinds: Sequence[str],
    highest: float,
    colors: str,
    *,
    labels: bool,
) -> Any:
    """Draw a table of shares; cells without a linear are gray."""
    shares = np.array([[table.get(block, {}).get(kind, math.nan) for kind in kinds] for block in blocks])
    image = axes.imshow(shares, cmap=colors, vmin=0, vmax=highest or 1.0, aspect="auto")
    axes.set_facecolor("#dddddd")
    axes.set_xticks(range(len(kinds)), kinds, rotation=40, ha="right", rotation_mode="anchor", fontsize=7)
    axes.set_yticks(range(len(blocks)), _short(blocks) if labels else [""] * len(blocks), fontsize=7)
    if shares.size <= _ANNOTATED:
        for row, column in np.argwhere(~np.isnan(shares)):
            share = shares[row, column]
            color = "black" if share > 0.6 * (highest or 1.0) else "white"
            axes.text(column, row, _short_percent(share), ha="center", va="center", fontsize=6, color=color)
    return image


def _draw_pairs(axes: Any, names: Sequence[str], overlaps: Sequence[Mapping[str, Any]]) -> None:
    """Draw the overlap of each pair, with that of random supports below it."""
    places = {name: index for index, name in enumerate(names)}
    shares = np.full((len(names), len(names)), math.nan)
    for pair in overlaps:
        row, column = places[pair["second"]], places[pair["first"]]
        shares[row, column] = pair["share"]
        text = f"{_short_percent(pair['share'])}\n(chance {_short_percent(pair['by_chance'])})"
        color = "black" if pair["share"] > 0.6 else "white"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    axes.imshow(shares, cmap="magma", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", rotation_mode="anchor", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlim(-0.5, len(names) - 1.5)
    axes.set_ylim(len(names) - 0.5, 0.5)
    axes.set_title("shared entries, of the smaller one", loc="left", fontsize=9)


def _short(blocks: Sequence[str]) -> list[str]:
    """Return the names without the parts that all begin with."""
    parts = [block.split(".") for block in blocks]
    same = 0
    while len(blocks) > 1 and all(len(one) > same + 1 and one[same] == parts[0][same] for one in parts):
        same += 1
    return [".".join(one[max(0, same - 1) :]) for one in parts]


def _short_percent(share: float) -> str:
    """Return a share with two digits at most."""
    percent = 100 * share
    return f"{percent:.0f}%" if percent >= 9.95 else f"{percent:.2g}%"


def _percent(share: float, _position: Any = None) -> str:
    return f"{100 * share:g}%"
