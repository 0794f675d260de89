"""Texts of ``taskedge info`` for several deltas and support files, and for layers with gates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskedge.errors import InputError
from taskedge.reporting.open_layers import open_layers_text
from taskedge.reporting.tables import columns, percent_text


def located(files: Sequence[Path]) -> dict[str, Any]:
    """Return where the supports of deltas and support files lie, and what each two of them share, as plain values.

    Raises:
        DeltaError, InputError: a file is neither a delta nor a support, has no entries, or is given twice.
    """
    from taskedge.selection.support_location import SupportLocation, location_values

    names = [file.stem for file in files]
    if len({*names}) < len(names):  # the same name in two folders
        names = [str(file) for file in files]
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice} is given twice: name each file once")
    locations = []
    for name, file in zip(names, files, strict=True):
        shapes, flat = _entries_of(file)
        if not any(map(len, flat.values())):
            raise InputError(
                f"{file} has no entries to locate, but low-rank products or full parameters only: leave it out"
            )
        locations.append(SupportLocation(name, shapes, flat))
    return location_values(locations)


def overlap_text(values: dict[str, Any]) -> str:
    """Return the result of :func:`located` for several files as tables."""
    supports = [["support", "entries", "blocks"]]
    for one in values["supports"]:
        supports.append([one["name"], f"{one['entries']:,}", f"{len(one['share_by_block'])}"])
    pairs = [["overlap of", "and", "shared", "of the smaller", "random supports"]]
    for pair in values["overlaps"]:
        shares = [percent_text(pair[key], 2) for key in ("share", "by_chance")]
        pairs.append([pair["first"], pair["second"], f"{pair['shared']:,}", *shares])
    return f"{columns(supports)}\n\n{columns(pairs, left=(0, 1))}"


def drawn_layers(is_open: Sequence[str], closed: Sequence[str]) -> str:
    """Return a drawing of which layers are open by depth; the arguments are names of layers."""
    from taskedge.selection.support_location import block_and_kind, ordered_blocks

    split = {name: block_and_kind(name) for name in (*is_open, *closed)}
    blocks = ordered_blocks([block for block, _ in split.values()])
    kinds_of = {block: [kind for other, kind in split.values() if other == block] for block in blocks}
    # within a block of one state the kinds have the order of the model
    mixed = {split[name][0] for name in is_open} & {split[name][0] for name in closed}
    fullest = max(kinds_of, key=lambda block: (len(kinds_of[block]), block not in mixed), default="")
    kinds = list(dict.fromkeys([*kinds_of.get(fullest, ()), *(kind for _, kind in split.values())]))
    return open_layers_text({split[name] for name in is_open}, {split[name] for name in closed}, blocks, kinds)


def _entries_of(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the shapes and the flat entries of the linears of a delta or a support file."""
    from taskedge.selection.avoid import flat_entries
    from taskedge.training.avoided_files import entries_of_file

    parts = entries_of_file(file)
    shapes = {name: entries.shape for part in parts for name, entries in part.items()}
    return shapes, flat_entries(parts)
