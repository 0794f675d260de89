"""The export ``gguf``: the base as a GGUF file with the delta's values in its weights.

The base's own GGUF file gives tokenizer, metadata and all tensors that the delta does not change, byte for byte. So the
result is the file of llama.cpp's converter, with other numbers in the linears of the delta.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from taskedge.backbone.gguf_file import gguf_package, is_gguf
from taskedge.backbone.layers import linears
from taskedge.delta.interop.export import FILE, Source, exports
from taskedge.delta.interop.gguf_lora import check_only_linears, write_gguf
from taskedge.delta.interop.gguf_names import gguf_names, read_tensor
from taskedge.delta.interop.read_back import changed_weights, replaced
from taskedge.delta.interop.self_check import Batch, logits_of
from taskedge.errors import InputError, UnknownName

TYPES = ("same", "f32", "f16", "q8_0")
TOLERANCES = {"F32": 1e-5, "F16": 1e-2, "BF16": 5e-2}
"""By type of the changed tensors, relative to the largest logit; 0.25 for a quantized one."""
OTHER_BASE = 0.25
"""Relative difference of a weight above which the file is not of this base; 4-bit rounding is about 0.1."""


def gguf_reader(source: Source, path: Path) -> Callable[[Batch], Tensor]:
    """Return the logits with the changed linears as the file holds them; all others are the model's."""
    names = gguf_names(source.model, [*source.delta.linears, *source.delta.low_rank])
    stored = {tensor.name: tensor for tensor in gguf_package().GGUFReader(str(path)).tensors}
    weights = {linear: names.from_gguf(linear, read_tensor(stored[name])) for linear, name in names.names.items()}

    def run(batch: Batch) -> Tensor:
        with replaced(source.model, weights):
            return logits_of(source.model, batch)

    return run


@exports("gguf", makes=FILE, loads="llama-cli -m {path!r}", reads=gguf_reader)
def gguf_model(
    source: Source, path: Path, *, gguf_base: str | Path | None = None, gguf_type: str = "same"
) -> dict[str, Any]:
    """The base's GGUF file with the delta's values; changed weights are f32, f16, q8_0 or of the base's type.

    Without ``gguf_base``, the base must have been read from a GGUF file, which is the one taken.

    A base of another quantization (the K types) gets the changed weights as q8_0, which the package can write.

    Raises:
        InputError: no file is given or it is not of this base, the model is of a type without GGUF export, or
            parameters were trained in full.
        UnknownName: ``gguf_type`` is not in :data:`TYPES`.
    """
    gguf = gguf_package()
    if gguf_base is None and is_gguf(source.base):
        gguf_base = source.base
    if gguf_base is None:
        raise InputError("--to gguf needs the GGUF file of the base: name it with --gguf-base")
    if gguf_type not in TYPES:
        raise UnknownName("GGUF type", gguf_type, TYPES)
    check_only_linears(source)
    reader = _opened(gguf, Path(gguf_base))
    names = gguf_names(source.model, [*source.delta.linears, *source.delta.low_rank])
    _check_architecture(reader, names.architecture, Path(gguf_base))
    linear_of = {name: linear for linear, name in names.names.items()}
    layers, base = linears(source.model), changed_weights(source, {})
    writer = gguf.GGUFWriter(str(path), names.architecture)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kinds = field.types
            inner = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kinds[0], inner)
    used = set()
    for tensor in reader.tensors:
        linear = linear_of.pop(tensor.name, None)
        if linear is None:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        _check_base(names.from_gguf(linear, read_tensor(tensor)), base[linear].float(), tensor.name, Path(gguf_base))
        kind = _type(gguf, tensor.tensor_type, gguf_type)
        weight = names.to_gguf(linear, layers[linear].weight.detach().float().cpu()).contiguous().numpy()
        writer.add_tensor(tensor.name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        used.add(kind.name)
    if linear_of:
        raise InputError(f"{gguf_base}: it has no tensor {next(iter(linear_of))!r}: name the GGUF file of this base")
    write_gguf(writer)
    tolerance = max(TOLERANCES.get(kind, 0.25) for kind in used)
    return {"tensors": len(names.names), "types": sorted(used), "tolerance": tolerance}


def _opened(gguf: Any, path: Path) -> Any:
    try:
        return gguf.GGUFReader(str(path))
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{path}: cannot be read as a GGUF file ({error}): name another with --gguf-base") from None


def _check_architecture(reader: Any, expected: str, path: Path) -> None:
    field = reader.fields.get("general.architecture")
    found = field.contents() if field is not None else None
    if found != expected:
        raise InputError(f"{path}: a model of architecture {found!r}, the base is {expected!r}: name its GGUF file")


def _check_base(stored: Tensor, expected: Tensor, name: str, path: Path) -> None:
    if stored.shape != expected.shape:
        raise InputError(
            f"{path}: tensor {name!r} is {list(stored.shape)}, in the base {list(expected.shape)}: name its GGUF file"
        )
    difference = float((stored - expected).norm() / expected.norm().clamp_min(1e-30))
    if not difference <= OTHER_BASE:
        raise InputError(
            f"{path}: tensor {name!r} differs from the base's by {difference:.0%} of its norm: it is of another base, "
            "name the GGUF file of this one"
        )


def _type(gguf: Any, present: Any, wanted: str) -> Any:
    """Return the type of a changed tensor."""
    kinds = gguf.GGMLQuantizationType
    if wanted != "same":
        return kinds[wanted.upper()]
    writable = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
    return present if present.name in writable else kinds.Q8_0
