"""Where supports lie: shares by block and kind of layer, and how much two supports overlap. No pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SupportLocation:
    """The entries of a support, wherever it comes from.

    Attributes:
        name: for tables and pictures.
        shapes: (out, in) of the weights, by linear.
        flat: entries as ascending ``row * in + column``, int64 [n], by linear.
    """

    name: str
    shapes: Mapping[str, tuple[int, int]]
    flat: Mapping[str, Tensor]

    def __len__(self) -> int:
        """Return the number of entries."""
        return sum(map(len, self.flat.values()))


@dataclass(frozen=True)
class SupportOverlap:
    """The entries that two supports share.

    Attributes:
        first, second: their names.
        shared: entries in both.
        share: ``shared`` over the entries of the smaller support.
        by_chance: the share that random supports with as many entries in each linear would have.
        by_block: the same share within each block and kind, 0 where only one of both has entries.
    """

    first: str
    second: str
    shared: int
    share: float
    by_chance: float
    by_block: dict[str, dict[str, float]]


def block_and_kind(name: str) -> tuple[str, str]:
    """Cut a linear's name at its layer number: ``a.layer.3.output.dense`` -> (``a.layer.3``, ``output.dense``).

    Numbers inside the part after a block, such as those of experts, belong to the kind.
    """
    parts = name.split(".")
    cut = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: cut + 1]) or name, ".".join(parts[cut + 1 :]) or name


def ordered_blocks(blocks: Sequence[str]) -> list[str]:
    """Return the names of blocks without repetition, smaller numbers first: ``layer.2`` before ``layer.10``."""

    def key(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]

    return sorted(dict.fromkeys(blocks), key=key)


def share_by_block(location: SupportLocation) -> dict[str, dict[str, float]]:
    """Return the chosen share of the weights, by block and then by kind; linears without entries are left out."""
    sizes = {name: out * inputs for name, (out, inputs) in location.shapes.items()}
    return _shares({name: (len(flat), sizes[name]) for name, flat in location.flat.items()})


def support_overlaps(locations: Sequence[SupportLocation]) -> list[SupportOverlap]:
    """Return the overlap of each pair of supports, in order."""
    return [_overlap_of(one, other) for one, other in combinations(locations, 2)]


def location_values(locations: Sequence[SupportLocation]) -> dict[str, Any]:
    """Return all of this module as plain values, JSON-able, for a table or a picture."""
    return {
        "supports": [
            {"name": one.name, "entries": len(one), "share_by_block": share_by_block(one)} for one in locations
        ],
        "overlaps": [
            {
                "first": one.first, "second": one.second, "shared": one.shared, "share": one.share,
                "by_chance": one.by_chance, "by_block": one.by_block,
            }
            for one in support_overlaps(locations)
        ],
    }  # fmt: skip


def _overlap_of(one: SupportLocation, other: SupportLocation) -> SupportOverlap:
    shared, expected = 0, 0.0
    counts: dict[str, tuple[int, int]] = {}
    for name in dict.fromkeys([*one.flat, *other.flat]):
        mine, theirs = one.flat.get(name), other.flat.get(name)
        if mine is None or theirs is None or one.shapes[name] != other.shapes[name]:
            counts[name] = 0, len(mine if mine is not None else other.flat[name])
            continue
        both = int(torch.isin(mine, theirs, assume_unique=True).sum())
        shared += both
        out, inputs = one.shapes[name]
        expected += len(mine) * len(theirs) / (out * inputs)
        counts[name] = both, min(len(mine), len(theirs))
    smaller = max(1, min(len(one), len(other)))
    return SupportOverlap(one.name, other.name, shared, shared / smaller, expected / smaller, _shares(counts))


def _shares(counts: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, float]]:
    """Return the sum of the first numbers over that of the second, by block and kind."""
    sums: dict[str, dict[str, list[int]]] = {}
    for name, (part, whole) in counts.items():
        block, kind = block_and_kind(name)
        total = sums.setdefault(block, {}).setdefault(kind, [0, 0])
        total[0] += part
        total[1] += whole
    return {
        block: {kind: part / whole if whole else 0.0 for kind, (part, whole) in sums[block].items()}
        for block in ordered_blocks(list(sums))
    }
