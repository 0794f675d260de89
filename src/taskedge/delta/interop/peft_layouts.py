"""Layouts of PEFT adapters that can represent a delta: tensors and config keys.

No PEFT type stores an arbitrary support directly. The three types below add numbers to it:

    supertuning   flat positions and *relative* values; every linear has the same share of its weights as entries, so
                  linears with a smaller share are padded with zeros at unused positions
    shira         the same, with r·(in + out) entries in every linear
    lora          B·A with one column of B for each distinct input of the linear's entries (or one row of A for each
                  distinct neuron, if these are fewer): exact, but dense, and padded with zeros to one rank for all
                  linears; the only type for Conv1D, for convolutions and for the low-rank products of a delta, whose
                  factors stand beside those of entries of the same linear

Source: peft 0.21, ``tuners/supertuning`` (arXiv 2607.09287), ``tuners/shira`` (arXiv 2406.13175) and ``tuners/lora``.
Source of the padding and of the exact factorization of a sparse change: this project.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskedge.delta.delta import LowRankDelta
from taskedge.errors import InputError


@dataclass(frozen=True)
class Change:
    """The change of one linear relative to the base: entries, or a product.

    Attributes:
        shape: (out, in).
        rows, columns: int64 [n], sorted by row and then column.
        relative: float32 [n], the applied weight minus the weight of the base.
        plain: whether the layer is an ``nn.Linear``; the sparse types support no other layer.
        product: the product that is added to the weight, beside the entries.
        kernel: height and width, if the layer is a convolution; in = channels · height · width.
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    relative: Tensor
    plain: bool
    product: LowRankDelta | None = None
    kernel: tuple[int, int] | None = None

    @property
    def scale(self) -> float:
        """The factor of the product of :func:`factors`; 1 with entries, which are not scaled."""
        return 1.0 if self.product is None or len(self.rows) else self.product.scale

    @property
    def size(self) -> int:
        """Numbers in the weight."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Layout:
    """An adapter: config keys, tensors by name, and how many numbers it stores beyond those of the delta."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    padded: int


def supertuning(changes: dict[str, Change]) -> Layout:
    """Store flat positions and relative values, the same share of every linear.

    Raises:
        InputError: a linear is not an ``nn.Linear``, or is changed by a low-rank product.
    """
    _only_entries(changes, "supertuning")
    sparsity = 1 - max(len(change.rows) / change.size for change in changes.values())

    def count(change: Change) -> int:
        return int(change.size * (1 - sparsity))  # with the rounding of peft

    while any(count(change) < len(change.rows) for change in changes.values()):
        sparsity = math.nextafter(sparsity, -1.0)
    config = {"sparsity": sparsity, "r": None, "save_precomputed_indices": True}
    return _padded(changes, count, config, "supertuning_values", "supertuning_indices", _flat)


def shira(changes: dict[str, Change]) -> Layout:
    """Store rows, columns and relative values, ``r·(in + out)`` in every linear.

    Raises:
        InputError: as in :func:`supertuning`; or a linear is too small for the r that another one needs.
    """
    _only_entries(changes, "shira")
    r = max(math.ceil(len(change.rows) / sum(change.shape)) for change in changes.values())
    for name, change in changes.items():
        if r * sum(change.shape) > change.size:
            raise InputError(
                f"SHiRA stores r·(in + out) entries in every linear. This delta needs rank {r}, and linear {name!r} "
                f"({list(change.shape)}) is too small for that: export as PEFT type 'supertuning'"
            )
    config = {"r": r, "mask_type": "random"}  # the mask is replaced by the indices when the adapter is loaded
    return _padded(changes, lambda change: r * sum(change.shape), config, "shira_weight", "shira_indices", _pairs)


def lora(changes: dict[str, Change], *, keep_scale: bool = True) -> Layout:
    """Store low-rank products, and entries as exact products of rank min(distinct columns, distinct rows).

    All linears get the same rank, the highest that one of them needs: the factors of the others are padded with zeros,
    which add nothing to the product. The config then holds one ``r`` and one ``lora_alpha``. With a rank and an alpha
    for each linear (``rank_pattern``, ``alpha_pattern``) the change would be right in peft only: vLLM scales every
    linear by one alpha/r, and llama.cpp scales each by the one alpha over the linear's own rank.

    If products differ in scale, or stand beside entries, the scale is multiplied into B. Without ``keep_scale`` it
    always is, so that alpha equals the rank and readers that ignore alpha are right, too.
    """
    scales = {change.scale for change in changes.values()}
    scale = scales.pop() if len(scales) == 1 and keep_scale else 1.0
    pairs = {name: factors(change) for name, change in changes.items()}
    rank = max(a.shape[0] for _, a in pairs.values())
    tensors: dict[str, Tensor] = {}
    padded = 0
    for name, change in changes.items():
        b, a = pairs[name]
        stored = len(change.rows) + (0 if change.product is None else change.product.num_parameters)
        if change.scale != scale:
            b = b * (change.scale / scale)
        missing = rank - a.shape[0]
        a, b = F.pad(a, (0, 0, 0, missing)), F.pad(b, (0, missing))  # rows of A, columns of B
        if change.kernel is not None:  # a convolution with the kernel, then one with a kernel of 1
            a, b = a.view(rank, -1, *change.kernel), b.view(*b.shape, 1, 1)
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        padded += a.numel() + b.numel() - stored
    config = {
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": not any(change.plain or change.kernel for change in changes.values()),
    }
    return Layout(config, tensors, padded)


LAYOUTS: dict[str, Callable[[dict[str, Change]], Layout]] = {"supertuning": supertuning, "shira": shira, "lora": lora}


def _only_entries(changes: dict[str, Change], kind: str) -> None:
    for name, change in changes.items():
        reason = None
        if change.product is not None:
            reason = "it is changed by a low-rank product"
        elif not change.plain:
            reason = "this type supports nn.Linear only, and the layer is another one (such as the Conv1D of GPT-2)"
        if reason is not None:
            raise InputError(f"{kind} cannot represent linear {name!r}: {reason}: export as PEFT type 'lora'")


def _padded(
    changes: dict[str, Change],
    count: Callable[[Change], int],
    config: dict[str, Any],
    values_name: str,
    positions_name: str,
    encode: Callable[[Change, Tensor], Tensor],
) -> Layout:
    """Store values and positions of every linear, padded to its count with zeros at the first unused positions."""
    tensors: dict[str, Tensor] = {}
    padded = 0
    for name, change in changes.items():
        used = change.rows * change.shape[1] + change.columns
        num_zeros = count(change) - len(used)
        unused = torch.ones(change.size, dtype=torch.bool)
        unused[used] = False
        flat = torch.cat([used, unused.nonzero()[:num_zeros, 0]])
        tensors[f"{name}.{values_name}"] = torch.cat([change.relative, torch.zeros(num_zeros)])
        tensors[f"{name}.{positions_name}"] = encode(change, flat)
        padded += num_zeros
    return Layout(config, tensors, padded)


def _flat(change: Change, flat: Tensor) -> Tensor:
    """Return flat positions as peft stores them, int32 [n]."""
    if change.size > 2**31:
        raise InputError(f"peft stores positions in 32 bits, and a linear of {list(change.shape)} has more")
    return flat.int()


def _pairs(change: Change, flat: Tensor) -> Tensor:
    """Return rows and columns, int32 [2, n]."""
    return torch.stack([flat // change.shape[1], flat % change.shape[1]]).int()


def factors(change: Change) -> tuple[Tensor, Tensor]:
    """Return B [out, rank] and A [rank, in], fp32, whose product times ``change.scale`` is the change.

    Every entry is a number times 1, so nothing is rounded; of a product beside entries, B times its scale is.
    """
    product = change.product
    if product is not None and not len(change.rows):
        return product.b, product.a
    b, a = _entry_factors(change)
    if product is None:
        return b, a
    return torch.cat([product.b * product.scale, b], dim=1), torch.cat([product.a, a])


def _entry_factors(change: Change) -> tuple[Tensor, Tensor]:
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
