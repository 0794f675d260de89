"""The delta file: one safetensors file that says all about itself (docs/delta-format.md).

Tensors:
    columns   u8, u16 or u32 [n]   column of each entry, the linears one after the other, rows ascending
    values    fp32 or bf16 [n]     absolute value of each entry
    counts    u8, u16 or u32 [r]   entries of each row; absent where every row of every linear has equally many
    low_rank_a/X  fp32 or bf16 [rank, in]    of the product that is added to the weight of linear X
    low_rank_b/X  fp32 or bf16 [out, rank]
    whole/X   [...]                a parameter that was trained whole
Metadata:
    taskedge  JSON: format, the linears (name, shape, entries, dtype and digest of the base), the low-rank ones
              (name, shape, rank, scale, dtype and digest), provenance
    digest    over that JSON and all tensors, so that no flipped bit goes unseen
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from taskedge.delta.delta import Delta, LinearDelta, LowRankDelta, Provenance
from taskedge.delta.manifest import FORMAT, LowRankEntry, Manifest, manifest_of
from taskedge.errors import DeltaError, InputError
from taskedge.io.atomic import write_aside

LARGEST = 2**32
"""Bytes: no delta is near it; a file above it is refused unread."""

_INDEX = {torch.uint8: 2**8, torch.uint16: 2**16, torch.uint32: 2**32}
_VALUES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_WHOLE, _A, _B = "whole/", "low_rank_a/", "low_rank_b/"


def save(delta: Delta, path: Path, *, values: Literal["fp32", "bf16"] = "fp32", head: bool = True) -> Path:
    """Writes ``delta`` to ``path``: aside first, then renamed, so that a file under its name is always whole.

    Raises:
        InputError: unknown ``values``, settings that are no JSON, or the file cannot be written (no such folder, no
            space left).
    """
    if values not in _VALUES:
        raise InputError(f"values={values!r} is unknown: 'fp32' or 'bf16'")
    from safetensors.torch import save as serialise

    tensors = _tensors(delta, _VALUES[values], head)
    try:
        manifest = json.dumps(manifest_of(delta), separators=(",", ":"))
    except TypeError as error:
        raise InputError(f"{path}: the training settings cannot be written as JSON ({error})") from None
    content = serialise(tensors, {"taskedge": manifest, "digest": content_digest(manifest, tensors)})
    write_aside(path, _in_order(content))
    return path


def load(path: str | Path) -> Delta:
    """Reads a delta file; whatever it returns is sound.

    Raises:
        InputError: the file is missing or cannot be read.
        DeltaError: it is no delta, is damaged, or contradicts itself; the message says where.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise DeltaError(f"{path}: {size:,} bytes is more than any delta holds")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return _parse(content)
    except DeltaError as error:
        raise DeltaError(f"{path}: {error}") from None


def section_bytes(path: str | Path) -> dict[str, int]:
    """Bytes of each tensor in a delta file, and of its ``header``; what ``taskedge info`` prints."""
    from safetensors import safe_open

    path = Path(path)
    sizes = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            sizes[name] = tensor.numel() * tensor.element_size()
    return {"header": path.stat().st_size - sum(sizes.values())} | sizes


def _tensors(delta: Delta, value_dtype: torch.dtype, head: bool) -> dict[str, Tensor]:
    linears = list(delta.linears.values())
    widest = max((linear.shape[1] for linear in linears), default=1)
    columns = torch.cat([linear.columns for linear in linears]) if linears else torch.empty(0, dtype=torch.int64)
    values = torch.cat([linear.values for linear in linears]) if linears else torch.empty(0)
    counts = [torch.bincount(linear.rows, minlength=linear.shape[0]) for linear in linears]
    every = torch.cat(counts) if counts else torch.empty(0, dtype=torch.int64)
    tensors = {"columns": columns.to(_narrowest(widest - 1)), "values": values.to(value_dtype)}
    if len(every) and int(every.min()) != int(every.max()):
        tensors["counts"] = every.to(_narrowest(int(every.max())))
    for name, product in delta.low_rank.items():
        tensors |= {
            factor + name: tensor.to(value_dtype).contiguous() for factor, tensor in ((_A, product.a), (_B, product.b))
        }
    if head:
        tensors |= {_WHOLE + name: tensor.contiguous() for name, tensor in delta.whole.items()}
    return tensors


def _in_order(content: bytes) -> bytes:
    """The same file with its metadata sorted: safetensors writes them in an order that differs from run to run."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    return len(text).to_bytes(8, "little") + text + content[end:]


def _narrowest(largest: int) -> torch.dtype:
    return next(dtype for dtype, end in _INDEX.items() if largest < end)


def content_digest(manifest: str, tensors: Mapping[str, Tensor]) -> str:
    """Hex BLAKE2b (128 bit) over a text and tensors on the CPU: names, dtypes, shapes and bytes."""
    total = hashlib.blake2b(manifest.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _parse(content: bytes) -> Delta:
    metadata, tensors = _open(content)
    if "taskedge" not in metadata or "digest" not in metadata:
        raise DeltaError("a safetensors file, but not a delta: it carries no taskedge manifest")
    if content_digest(metadata["taskedge"], tensors) != metadata["digest"]:
        raise DeltaError("damaged: its content does not match its digest; fetch the file again")
    try:
        manifest = Manifest.model_validate_json(metadata["taskedge"])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "form"
        raise DeltaError(f"its manifest is not of format {FORMAT}: {place}: {first['msg']}") from None
    _check_names(manifest, tensors)
    return Delta(
        linears=_linears(manifest, tensors),
        whole={name.removeprefix(_WHOLE): tensor for name, tensor in tensors.items() if name.startswith(_WHOLE)},
        provenance=Provenance(**manifest.provenance.model_dump()),
        low_rank=_low_rank(manifest.low_rank, tensors),
    )


def _open(content: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file in memory."""
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    try:
        tensors = deserialise(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise DeltaError(f"not a whole safetensors file ({error})") from None
    return header.get("__metadata__") or {}, tensors


def _check_names(manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    products = [entry.name for entry in manifest.low_rank]
    for names in ([entry.name for entry in manifest.linears], products):
        if len(set(names)) != len(names):
            raise DeltaError("a linear is named twice")
    known = {"columns", "values", "counts", *(factor + name for name in products for factor in (_A, _B))}
    for name in tensors:
        if name not in known and not name.startswith(_WHOLE):
            raise DeltaError(f"tensor {name!r} is no part of a delta")


def _low_rank(entries: Iterable[LowRankEntry], tensors: Mapping[str, Tensor]) -> dict[str, LowRankDelta]:
    return {
        entry.name: LowRankDelta(
            a=_take(tensors, _A + entry.name, (entry.rank, entry.inputs), _VALUES.values()).float(),
            b=_take(tensors, _B + entry.name, (entry.out, entry.rank), _VALUES.values()).float(),
            scale=float(entry.scale),
            base_dtype=entry.dtype,
            base_digest=entry.digest,
        )
        for entry in entries
    }


def _linears(manifest: Manifest, tensors: Mapping[str, Tensor]) -> dict[str, LinearDelta]:
    total = sum(entry.entries for entry in manifest.linears)
    rows_in_all = sum(entry.out for entry in manifest.linears)
    columns = _take(tensors, "columns", (total,), _INDEX).long()
    values = _take(tensors, "values", (total,), _VALUES.values()).float()
    counts = _take(tensors, "counts", (rows_in_all,), _INDEX).long() if "counts" in tensors else None
    each, odd = divmod(total, rows_in_all) if rows_in_all else (0, 0)
    if counts is None and odd:
        raise DeltaError(f"{total} entries over {rows_in_all} rows are not equally many each, but 'counts' is missing")

    linears, row, entry_start = {}, 0, 0
    for entry in manifest.linears:
        per_row = None if counts is None else counts[row : row + entry.out]
        held = each * entry.out if per_row is None else int(per_row.sum())
        if held != entry.entries:
            raise DeltaError(f"linear {entry.name!r}: its rows hold {held} entries, not {entry.entries}")
        here = slice(entry_start, entry_start + entry.entries)
        linears[entry.name] = LinearDelta(
            shape=(entry.out, entry.inputs),
            rows=_rows(held, each if per_row is None else per_row),
            columns=columns[here],
            values=values[here],
            base_dtype=entry.dtype,
            base_digest=entry.digest,
        )
        row, entry_start = row + entry.out, here.stop
    return linears


def _rows(entries: int, per_row: int | Tensor) -> Tensor:
    """int64 [entries]: the row of each; makes nothing of the size of a row count that no entry bears out."""
    if not entries:
        return torch.empty(0, dtype=torch.int64)
    if isinstance(per_row, int):
        return torch.arange(entries) // per_row
    return torch.repeat_interleave(torch.arange(len(per_row)), per_row)


def _take(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], dtypes: Any) -> Tensor:
    if name not in tensors:
        raise DeltaError(f"tensor {name!r} is missing")
    tensor = tensors[name]
    if tensor.dtype not in dtypes or tensor.shape != shape:
        raise DeltaError(f"tensor {name!r} is {tensor.dtype} {list(tensor.shape)}; {list(shape)} was expected")
    return tensor
