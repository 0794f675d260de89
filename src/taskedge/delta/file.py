"""The delta file: one self-describing container file (docs/delta-format.md).

Tensors:
    columns   u8, u16 or u32 [n]   column of each entry, one linear after the other, rows ascending
    values    fp32 or bf16 [n]     absolute value of each entry
    counts    u8, u16 or u32 [r]   entries of each row; absent if every row of every linear has equally many
    column_lists  u8, u16 or u32 [m]   lists of columns, one after the other; a linear with a list has an entry in each
                                   of these columns in every row, and takes no part in ``columns`` and ``counts``
    low_rank_a/X  fp32 or bf16 [rank, in]    factors of the product that is added to the weight of linear X
    low_rank_b/X  fp32 or bf16 [out, rank]
    filter/X/P  fp32 or bf16 [...]  tensor P of the filter of the low-rank product of linear X (:mod:`.filter_delta`)
    prompt/tokens, prompt/segments  fp32 or bf16   soft tokens [slots, length, width], vectors of roles [3, width]
    whole/X   [...]                a parameter that was trained in full, or a running statistic of a norm
    head/H/X  [...]                the same, of head H of a delta for several tasks
    gates/H, own_counts/H, own_columns/H, own_values/H
                                   rows in which head H has entries of its own (:mod:`.gated_tensors`)
Metadata:
    taskedge  the manifest, JSON: format, linears (name, shape, entries, dtype and digest of the base), low-rank linears
              (name, shape, rank, scale, dtype and digest), provenance; with column lists, their lengths and the list of
              each linear
    digest    over the manifest and all tensors, so that every flipped bit is detected
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from taskedge.delta.delta import Delta, Head, LinearDelta, LowRankDelta, Provenance
from taskedge.delta.filter_delta import filter_names, filter_tensors, filters_from_tensors
from taskedge.delta.gated_tensors import PREFIXES, gated_from_tensors, gated_tensors
from taskedge.delta.manifest import (
    FORMAT,
    FORMAT_WITH_GATES,
    FORMAT_WITH_LISTS,
    HeadEntry,
    LinearEntry,
    LowRankEntry,
    Manifest,
    form_of,
)
from taskedge.delta.prompt_delta import PROMPT_SEGMENTS, PROMPT_TOKENS, prompt_from_tensors
from taskedge.errors import DeltaError, InputError
from taskedge.io.atomic import write_atomic
from taskedge.io.container import ContainerKind
from taskedge.selection.support import columns_of_every_row

DELTA = ContainerKind(
    name="delta",
    key="taskedge",
    error=DeltaError,
    max_bytes=2**32,
    format=FORMAT_WITH_GATES,
    older_formats=(FORMAT, FORMAT_WITH_LISTS),
    remedy="fetch the file again",
)

_INDEX_DTYPES = {torch.uint8: 2**8, torch.uint16: 2**16, torch.uint32: 2**32}
"""Dtypes of indices and counts, and the first number that each cannot hold."""
_VALUE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_FULL, _A, _B, _HEAD = "whole/", "low_rank_a/", "low_rank_b/", "head/"


def save(delta: Delta, path: str | Path, *, values: Literal["fp32", "bf16"] = "fp32", head: bool = True) -> Path:
    """Write a delta to one file (docs/delta-format.md), atomically.

    Args:
        delta: from :func:`taskedge.extract`.
        path: file to write; an existing file is replaced.
        values: dtype of stored entries and low-rank factors. ``"bf16"`` halves their size and rounds them.
        head: whether to store the parameters that were trained in full.

    Returns:
        ``path``.

    Raises:
        InputError: ``values`` is unknown, the training settings are not JSON-able, or the file cannot be written.
    """
    path = Path(path)
    if values not in _VALUE_DTYPES:
        raise InputError(f"values {values!r} are unknown: give 'fp32' or 'bf16'")
    lists = _ColumnLists.of_delta(delta)
    tensors = _tensors_of(delta, lists, _VALUE_DTYPES[values], head)
    try:
        content = DELTA.pack(_header_of(delta, lists), tensors)
    except TypeError as error:
        raise InputError(f"{path}: the training settings cannot be written as JSON ({error})") from None
    write_atomic(path, content)
    return path


def load(path: str | Path) -> Delta:
    """Read a delta file and validate it in full.

    Raises:
        InputError: the file is missing or cannot be read.
        DeltaError: the file is not a delta, is damaged, or contradicts itself; the message names the part.
    """
    path = Path(path)
    container = DELTA.read(path)
    try:
        manifest = Manifest.model_validate_json(container.text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "form"
        stated = container.header.get("format")
        raise DeltaError(f"{path}: its manifest is not of format {stated}: {key}: {first['msg']}") from None
    tensors = container.tensors
    try:
        _check_names(manifest, tensors)
        return Delta(
            linears=_linears(manifest, tensors),
            full_parameters={
                name.removeprefix(_FULL): tensor for name, tensor in tensors.items() if name.startswith(_FULL)
            },
            provenance=Provenance(**manifest.provenance.model_dump()),
            low_rank=_low_rank(manifest.low_rank, tensors),
            heads=_heads(manifest.heads, tensors),
            filters=filters_from_tensors(
                manifest.filters,
                {entry.name: entry.out for entry in manifest.low_rank},
                tensors,
                _tensor,
                _VALUE_DTYPES.values(),
            ),
            prompt=prompt_from_tensors(manifest.prompts, tensors, _tensor, _VALUE_DTYPES.values()),
        )
    except DeltaError as error:
        raise DeltaError(f"{path}: {error}") from None


def section_bytes(path: str | Path) -> dict[str, int]:
    """Return the bytes of a delta file's ``header`` and of each tensor, by name."""
    path = Path(path)
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in DELTA.read(path).tensors.items()}
    return {"header": path.stat().st_size - sum(sizes.values())} | sizes


@dataclass(frozen=True)
class _ColumnLists:
    """The columns of linears that have entries in the same columns in every row.

    Attributes:
        lists: distinct lists of columns, each int64 [C].
        of: index of the list of each linear, in the order of the delta; -1 for a linear without one.
    """

    lists: list[Tensor]
    of: list[int]

    @classmethod
    def of_delta(cls, delta: Delta) -> _ColumnLists:
        """Return the lists of a delta; query, key and value with equal columns have one list."""
        indices: dict[tuple[int, ...], int] = {}
        of = []
        for linear in delta.linears.values():
            columns = columns_of_every_row(linear.shape[0], linear.rows, linear.columns)
            of.append(-1 if columns is None else indices.setdefault(tuple(columns.tolist()), len(indices)))
        return cls([torch.tensor(columns, dtype=torch.int64) for columns in indices], of)


def _header_of(delta: Delta, lists: _ColumnLists) -> dict[str, Any]:
    """Return the manifest of a delta."""
    has_gates = any(head.gated for head in delta.heads.values())
    prompts = [] if delta.prompt is None else [delta.prompt.entry]
    header: dict[str, Any] = {
        "format": FORMAT_WITH_GATES if has_gates else FORMAT_WITH_LISTS if lists.lists else FORMAT,
        "form": form_of(delta.low_rank, delta.heads, has_gates, delta.filters, prompts, delta.overlap),
        "linears": [
            LinearEntry(name, *linear.shape, len(linear), linear.base_dtype, linear.base_digest)
            for name, linear in delta.linears.items()
        ],
    }
    if lists.lists:
        header |= {"column_lists": [len(columns) for columns in lists.lists], "list_of": lists.of}
    if delta.low_rank:
        header["low_rank"] = [
            LowRankEntry(name, *product.shape, product.rank, product.scale, product.base_dtype, product.base_digest)
            for name, product in delta.low_rank.items()
        ]
    if delta.heads:
        header["heads"] = [_head_line(name, head) for name, head in delta.heads.items()]
    if delta.filters:
        header["filters"] = [(name, one.kind, one.rank) for name, one in delta.filters.items()]
    if prompts:
        header["prompts"] = prompts
    return header | {"provenance": asdict(delta.provenance)}


def _head_line(name: str, head: Head) -> list[Any]:
    gated = [
        LinearEntry(linear, *rows.shape, len(rows), rows.base_dtype, rows.base_digest)
        for linear, rows in head.gated.items()
    ]
    return [name, asdict(head.provenance), *([gated] if gated else [])]


def _tensors_of(delta: Delta, lists: _ColumnLists, value_dtype: torch.dtype, head: bool) -> dict[str, Tensor]:
    every = list(delta.linears.values())
    linears = [linear for linear, index in zip(every, lists.of, strict=True) if index < 0]
    no_indices = torch.empty(0, dtype=torch.int64)
    columns = torch.cat([no_indices, *(linear.columns for linear in linears)])
    values = torch.cat([torch.empty(0), *(linear.values for linear in every)])
    counts = torch.cat([no_indices, *(torch.bincount(linear.rows, minlength=linear.shape[0]) for linear in linears)])
    widest = max((linear.shape[1] for linear in every), default=1)
    tensors = {"columns": columns.to(_narrowest_dtype(widest - 1)), "values": values.to(value_dtype)}
    if len(counts) and int(counts.min()) != int(counts.max()):
        tensors["counts"] = counts.to(_narrowest_dtype(int(counts.max())))
    if lists.lists:
        tensors["column_lists"] = torch.cat(lists.lists).to(_narrowest_dtype(widest - 1))
    for name, product in delta.low_rank.items():
        tensors[_A + name] = product.a.to(value_dtype)
        tensors[_B + name] = product.b.to(value_dtype)
    tensors |= filter_tensors(delta.filters, value_dtype)
    if delta.prompt is not None:
        tensors |= {name: tensor.to(value_dtype) for name, tensor in delta.prompt.tensors.items()}
    if head:
        tensors |= {_FULL + name: tensor for name, tensor in delta.full_parameters.items()}
        for owner, own in delta.heads.items():
            tensors |= {f"{_HEAD}{owner}/{name}": tensor for name, tensor in own.full_parameters.items()}
    for owner, own in delta.heads.items():
        if own.gated:
            tensors |= gated_tensors(owner, own.gated, _narrowed, value_dtype)
    return tensors


def _narrowest_dtype(largest: int) -> torch.dtype:
    return next(dtype for dtype, end in _INDEX_DTYPES.items() if largest < end)


def _narrowed(indices: Tensor) -> Tensor:
    return indices.to(_narrowest_dtype(int(indices.max()) if len(indices) else 0))


def _check_names(manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    products = [entry.name for entry in manifest.low_rank]
    heads = [entry.name for entry in manifest.heads]
    for names, what in (([entry.name for entry in manifest.linears], "linear"), (products, "linear"), (heads, "head")):
        if len(set(names)) != len(names):
            raise DeltaError(f"a {what} is named twice")
    expected = {"columns", "values", "counts", *(["column_lists"] if manifest.column_lists else ())}
    expected |= {*(factor + name for name in products for factor in (_A, _B))}
    expected |= filter_names(manifest.filters)
    expected |= {PROMPT_TOKENS, PROMPT_SEGMENTS} if manifest.prompts else set()
    expected |= {prefix + entry.name for entry in manifest.heads if entry.gated for prefix in PREFIXES}
    for name in tensors:
        of_head = name.startswith(_HEAD) and name.split("/")[1] in heads and name.count("/") >= 2
        if name not in expected and not name.startswith(_FULL) and not of_head:
            raise DeltaError(f"tensor {name!r} is not part of a delta")


def _heads(entries: Iterable[HeadEntry], tensors: Mapping[str, Tensor]) -> dict[str, Head]:
    heads = {}
    for entry in entries:
        prefix = f"{_HEAD}{entry.name}/"
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        gated = (
            gated_from_tensors(entry.name, entry.gated, tensors, _tensor, _INDEX_DTYPES, _VALUE_DTYPES.values())
            if entry.gated
            else {}
        )
        heads[entry.name] = Head(own, Provenance(**entry.provenance.model_dump()), gated)
    return heads


def _low_rank(entries: Iterable[LowRankEntry], tensors: Mapping[str, Tensor]) -> dict[str, LowRankDelta]:
    return {
        entry.name: LowRankDelta(
            a=_tensor(tensors, _A + entry.name, (entry.rank, entry.inputs), _VALUE_DTYPES.values()).float(),
            b=_tensor(tensors, _B + entry.name, (entry.out, entry.rank), _VALUE_DTYPES.values()).float(),
            scale=float(entry.scale),
            base_dtype=entry.dtype,
            base_digest=entry.digest,
        )
        for entry in entries
    }


def _linears(manifest: Manifest, tensors: Mapping[str, Tensor]) -> dict[str, LinearDelta]:
    list_of = manifest.list_of or [-1] * len(manifest.linears)
    indexed = [entry for entry, index in zip(manifest.linears, list_of, strict=True) if index < 0]
    num_entries, num_rows = sum(entry.entries for entry in indexed), sum(entry.out for entry in indexed)
    columns = _tensor(tensors, "columns", (num_entries,), _INDEX_DTYPES).long()
    num_values = sum(entry.entries for entry in manifest.linears)
    values = _tensor(tensors, "values", (num_values,), _VALUE_DTYPES.values()).float()
    lists = _lists(manifest, tensors)
    counts = _tensor(tensors, "counts", (num_rows,), _INDEX_DTYPES).long() if "counts" in tensors else None
    entries_per_row, remainder = divmod(num_entries, num_rows) if num_rows else (0, 0)
    if counts is None and remainder:
        raise DeltaError(f"{num_entries} entries do not divide evenly over {num_rows} rows, and 'counts' is missing")

    linears = {}
    row = first = first_value = 0
    for entry, index in zip(manifest.linears, list_of, strict=True):
        per_row: int | Tensor
        if index >= 0:
            per_row = len(lists[index])
        else:
            per_row = entries_per_row if counts is None else counts[row : row + entry.out]
        total = per_row * entry.out if isinstance(per_row, int) else int(per_row.sum())
        if total != entry.entries:
            raise DeltaError(f"linear {entry.name!r}: its rows hold {total} entries, not {entry.entries}")
        linears[entry.name] = LinearDelta(
            shape=(entry.out, entry.inputs),
            rows=_rows(total, per_row),
            columns=lists[index].repeat(entry.out) if index >= 0 else columns[first : first + total],
            values=values[first_value : first_value + total],
            base_dtype=entry.dtype,
            base_digest=entry.digest,
        )
        first_value += total
        if index < 0:
            row += entry.out
            first += total
    return linears


def _lists(manifest: Manifest, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the lists of columns, each int64 [C]."""
    if not manifest.column_lists:
        return []
    stored = _tensor(tensors, "column_lists", (sum(manifest.column_lists),), _INDEX_DTYPES).long()
    return list(torch.split(stored, manifest.column_lists))


def _rows(num_entries: int, per_row: int | Tensor) -> Tensor:
    """Return the row index of each entry, int64 [num_entries].

    It allocates memory for entries, never for empty rows, so a forged row count cannot exhaust memory.
    """
    if not num_entries:
        return torch.empty(0, dtype=torch.int64)
    if isinstance(per_row, int):
        return torch.arange(num_entries) // per_row
    return torch.repeat_interleave(torch.arange(len(per_row)), per_row)


def _tensor(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], dtypes: Collection[torch.dtype]
) -> Tensor:
    """Return the tensor of a name after checking its shape and dtype."""
    if name not in tensors:
        raise DeltaError(f"tensor {name!r} is missing")
    tensor = tensors[name]
    if tensor.dtype not in dtypes or tensor.shape != shape:
        raise DeltaError(f"tensor {name!r} is {tensor.dtype} {list(tensor.shape)}; {list(shape)} was expected")
    return tensor
