"""The forms of peft's that can hold a delta's change: tensors and config keys for each.

No form of peft's holds any support as it is, so each of the three below says what it costs:

    supertuning   flat positions and *relative* values; every linear carries the same share of its entries, so linears
                  with a smaller share are padded with zeros at unused positions
    shira         the same, where every linear carries r·(in + out) entries
    lora          B·A with one column of B per distinct input that the linear's entries read (or one row of A per
                  distinct neuron, where these are fewer): exact and unpadded, but dense; the only one that takes Conv1D
                  and the low-rank products of a delta, which go in as they are

Sources: peft 0.21's ``tuners/supertuning`` (arXiv 2607.09287), ``tuners/shira`` (arXiv 2406.13175) and ``tuners/lora``;
the padding, and the exact factorisation of a sparse change, are ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskedge.delta.delta import LowRankDelta
from taskedge.errors import InputError


@dataclass(frozen=True)
class Change:
    """What the delta changes in one linear, relative to the base: entries, or a product.

    Attributes:
        shape: (out, in).
        rows, columns: int64 [n], sorted by row and then column.
        relative: float32 [n], the applied weight less the base's.
        plain: whether the layer is an ``nn.Linear``, which alone the sparse forms take.
        product: what is added to the whole weight; there are no entries then.
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    relative: Tensor
    plain: bool
    product: LowRankDelta | None = None

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Layout:
    """One form of adapter: its config keys, tensors by name, and how many numbers beyond the entries it holds."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    padded: int


def supertuning(changes: dict[str, Change]) -> Layout:
    """Flat positions and relative values, as many in every linear as its size times one share.

    Raises:
        InputError: a linear is no ``nn.Linear``, or is changed by a low-rank product.
    """
    _only_entries(changes, "supertuning")
    sparsity = 1 - max(len(change.rows) / change.size for change in changes.values())

    def count(change: Change) -> int:
        return int(change.size * (1 - sparsity))  # as peft counts, rounding and all

    while any(count(change) < len(change.rows) for change in changes.values()):
        sparsity = math.nextafter(sparsity, -1.0)
    config = {"sparsity": sparsity, "r": None, "save_precomputed_indices": True}
    return _padded(changes, count, config, "supertuning_values", "supertuning_indices", _flat)


def shira(changes: dict[str, Change]) -> Layout:
    """Rows, columns and relative values, ``r·(in + out)`` of them in every linear.

    Raises:
        InputError: as for supertuning; or a linear is too small to hold as many entries as another needs.
    """
    _only_entries(changes, "shira")
    r = max(math.ceil(len(change.rows) / sum(change.shape)) for change in changes.values())
    for name, change in changes.items():
        if r * sum(change.shape) > change.size:
            raise InputError(
                f"SHiRA holds r·(in + out) entries in every linear, and with the r={r} that this delta needs that is "
                f"more than linear {name!r} has ({list(change.shape)}): export with peft_type='supertuning'"
            )
    config = {"r": r, "mask_type": "random"}  # the mask is replaced by the indices when the adapter is loaded
    return _padded(changes, lambda change: r * sum(change.shape), config, "shira_weight", "shira_indices", _pairs)


def lora(changes: dict[str, Change]) -> Layout:
    """Low-rank products as they are, and entries as exact ones of rank min(distinct columns, distinct rows).

    The scale alpha/r is the same for all, since some servers know one only: where products differ in it, or stand
    beside entries, it goes into B.
    """
    scales = {change.product.scale if change.product else 1.0 for change in changes.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    held = 0
    for name, change in changes.items():
        b, a = _factors(change)
        if change.product is not None and change.product.scale != scale:
            b = b * (change.product.scale / scale)
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        ranks[f"^{re.escape(name)}$"] = a.shape[0]
        held += 0 if change.product else a.numel() + b.numel() - len(change.rows)
    highest = max(ranks.values())
    config = {
        "r": highest,
        "rank_pattern": ranks,
        "lora_alpha": scale * highest,
        "alpha_pattern": {name: scale * rank for name, rank in ranks.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": not any(change.plain for change in changes.values()),
    }
    return Layout(config, tensors, held)


LAYOUTS: dict[str, Callable[[dict[str, Change]], Layout]] = {"supertuning": supertuning, "shira": shira, "lora": lora}


def _only_entries(changes: dict[str, Change], kind: str) -> None:
    for name, change in changes.items():
        why = None if change.plain else "peft takes nn.Linear only there, and this is none (a Conv1D, as in GPT-2)"
        why = why if change.product is None else "it is changed by a low-rank product"
        if why is not None:
            raise InputError(f"{kind} cannot hold linear {name!r}: {why}: export with peft_type='lora'")


def _padded(
    changes: dict[str, Change],
    count: Callable[[Change], int],
    config: dict[str, Any],
    values: str,
    places: str,
    form: Callable[[Change, Tensor], Tensor],
) -> Layout:
    """Values and positions of every linear, filled up to its count with zeros at the first unused positions."""
    tensors: dict[str, Tensor] = {}
    padded = 0
    for name, change in changes.items():
        taken = change.rows * change.shape[1] + change.columns
        more = count(change) - len(taken)
        free = torch.ones(change.size, dtype=torch.bool)
        free[taken] = False
        flat = torch.cat([taken, free.nonzero()[:more, 0]])
        tensors[f"{name}.{values}"] = torch.cat([change.relative, torch.zeros(more)])
        tensors[f"{name}.{places}"] = form(change, flat)
        padded += more
    return Layout(config, tensors, padded)


def _flat(change: Change, flat: Tensor) -> Tensor:
    """int32 [n]: as peft stores them."""
    if change.size > 2**31:
        raise InputError(f"peft counts positions in 32 bits, and a linear of {list(change.shape)} has more")
    return flat.int()


def _pairs(change: Change, flat: Tensor) -> Tensor:
    """int32 [2, n]: rows and columns."""
    return torch.stack([flat // change.shape[1], flat % change.shape[1]]).int()


def _factors(change: Change) -> tuple[Tensor, Tensor]:
    """B [out, rank] and A [rank, in], fp32, whose product is the change, but for a product's own scale.

    Every entry is one number times one, so nothing is rounded.
    """
    if change.product is not None:
        return change.product.b, change.product.a
    out, inputs = change.shape
    used, column = torch.unique(change.columns, return_inverse=True)
    neurons, row = torch.unique(change.rows, return_inverse=True)
    rank = min(len(used), len(neurons))
    b, a = torch.zeros(out, rank), torch.zeros(rank, inputs)
    if rank == len(used):
        a[torch.arange(rank), used] = 1
        b[change.rows, column] = change.relative
    else:
        b[neurons, torch.arange(rank)] = 1
        a[row, change.columns] = change.relative
    return b, a
