"""The gates and own entries of a task in a delta file, as tensors.

``gates/H`` (u8) are the gates of head H, 8 rows a byte, the first row in the highest bit; each linear begins a byte.
``own_counts/H`` are the entries of each row whose gate is open, ``own_columns/H`` their columns, and ``own_values/H``
their absolute values (fp32 or bf16), one linear after the other. Indices have the narrowest of u8, u16 and u32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskedge.delta.gated_rows import GatedRows
from taskedge.errors import DeltaError

PREFIXES = ("gates/", "own_counts/", "own_columns/", "own_values/")
Narrow = Callable[[Tensor], Tensor]
Checked = Callable[[Mapping[str, Tensor], str, tuple[int, ...], Collection[torch.dtype]], Tensor]


def gated_tensors(head: str, gated: Mapping[str, GatedRows], narrow: Narrow, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of one head.

    Args:
        head: its name.
        gated: its rows, by linear.
        narrow: stores indices in the narrowest dtype.
        dtype: of stored values.
    """
    parts = list(gated.values())
    gates = [np.packbits(part.gates.numpy()) for part in parts]
    counts = [torch.bincount(part.rows, minlength=part.shape[0])[part.gates] for part in parts]
    return {
        f"gates/{head}": torch.from_numpy(np.concatenate(gates)),
        f"own_counts/{head}": narrow(torch.cat(counts)),
        f"own_columns/{head}": narrow(torch.cat([part.columns for part in parts])),
        f"own_values/{head}": torch.cat([part.values for part in parts]).to(dtype),
    }


def gated_from_tensors(
    head: str, entries: Iterable[Any], tensors: Mapping[str, Tensor], checked: Checked,
    index_dtypes: Collection[torch.dtype], value_dtypes: Collection[torch.dtype],
) -> dict[str, GatedRows]:  # fmt: skip
    """Return the rows of one head, by linear.

    Args:
        head: its name.
        entries: the manifest's lines of its linears.
        tensors: of the file.
        checked: returns a tensor after checking its shape and dtype.
        index_dtypes, value_dtypes: the dtypes that indices and values may have.

    Raises:
        DeltaError: the tensors do not fit the manifest.
    """
    entries = list(entries)
    widths = [-(-entry.out // 8) for entry in entries]
    packed = checked(tensors, f"gates/{head}", (sum(widths),), (torch.uint8,))
    total = sum(entry.entries for entry in entries)
    columns = checked(tensors, f"own_columns/{head}", (total,), index_dtypes).long()
    values = checked(tensors, f"own_values/{head}", (total,), value_dtypes).float()
    gates = []
    for entry, bits in zip(entries, torch.split(packed, widths), strict=True):
        unpacked = np.unpackbits(bits.numpy())
        if unpacked[entry.out :].any():
            raise DeltaError(f"linear {entry.name!r}: head {head!r} has gates beyond its {entry.out} rows")
        gates.append(torch.from_numpy(unpacked[: entry.out].astype(bool)))
    num_open = [int(each.sum()) for each in gates]
    counts = checked(tensors, f"own_counts/{head}", (sum(num_open),), index_dtypes).long()
    found = {}
    first = 0
    for entry, opened, own in zip(entries, gates, torch.split(counts, num_open), strict=True):
        if int(own.sum()) != entry.entries:
            raise DeltaError(f"linear {entry.name!r}: the rows of head {head!r} hold {int(own.sum())} entries, "
                             f"not {entry.entries}")  # fmt: skip
        last = first + entry.entries
        rows = torch.repeat_interleave(opened.nonzero().flatten(), own)
        found[entry.name] = GatedRows(
            (entry.out, entry.inputs), opened, rows, columns[first:last], values[first:last], entry.dtype, entry.digest
        )
        first = last
    return found
