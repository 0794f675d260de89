"""The export ``gguf-lora``: an adapter file for llama.cpp and what is built on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from taskedge.backbone.gguf_file import gguf_package
from taskedge.delta.interop.export import FILE, Source, exports
from taskedge.delta.interop.gguf_names import gguf_names, read_tensor
from taskedge.delta.interop.lora_export import checked_ranks
from taskedge.delta.interop.peft_export import changes_of
from taskedge.delta.interop.peft_layouts import lora
from taskedge.delta.interop.read_back import changed_weights, replaced
from taskedge.delta.interop.self_check import Batch, logits_of
from taskedge.errors import InputError


def gguf_lora_reader(source: Source, path: Path) -> Callable[[Batch], Tensor]:
    """Return the logits with the adapter as llama.cpp adds it: ``alpha / rank`` of each tensor times B·A."""
    reader = gguf_package().GGUFReader(str(path))
    tensors = {tensor.name: read_tensor(tensor) for tensor in reader.tensors}
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    names = gguf_names(source.model, [*source.delta.linears, *source.delta.low_rank])
    factors = {
        linear: (tensors[f"{name}.lora_a"], names.from_gguf(linear, tensors[f"{name}.lora_b"]))
        for linear, name in names.names.items()
        if f"{name}.lora_a" in tensors
    }
    changes = {linear: _adding(a, b, alpha / a.shape[0]) for linear, (a, b) in factors.items()}
    weights = changed_weights(source, changes)

    def run(batch: Batch) -> Tensor:
        with replaced(source.model, weights):
            return logits_of(source.model, batch)

    return run


def _adding(a: Tensor, b: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight + scale * (b @ a)


@exports("gguf-lora", makes=FILE, loads="llama-cli -m base.gguf --lora {path!r}", reads=gguf_lora_reader)
def gguf_lora(source: Source, path: Path, *, max_rank: int | None = None) -> dict[str, Any]:
    """A LoRA adapter in GGUF, fp32, of one rank with alpha equal to it, for llama.cpp and Ollama.

    Raises:
        InputError: the package is missing, the model is of a type without GGUF export, a linear needs more than
            ``max_rank``, or parameters were trained in full: llama.cpp adapters hold products only.
    """
    gguf = gguf_package()
    check_only_linears(source)
    checked_ranks(source, max_rank)
    changes = changes_of(source)
    layout = lora(changes, keep_scale=False)
    names = gguf_names(source.model, changes)
    writer = gguf.GGUFWriter(str(path), names.architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(layout.config["r"]))
    for linear, name in names.names.items():
        a, b = (layout.tensors[f"{linear}.lora_{part}.weight"] for part in "AB")
        writer.add_tensor(f"{name}.lora_a", a.contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", names.to_gguf(linear, b).contiguous().numpy())
    write_gguf(writer)
    return {"linears": len(changes), "rank": layout.config["r"], "padded": layout.padded}


def check_only_linears(source: Source) -> None:
    """Check that no parameter was trained in full.

    Raises:
        InputError: one was.
    """
    if source.delta.full_parameters:
        first = min(source.delta.full_parameters)
        raise InputError(
            f"{len(source.delta.full_parameters)} parameters were trained in full ({first!r} first), and a GGUF export "
            "holds the weights of linears only: export with --to merged and convert that folder"
        )


def write_gguf(writer: Any) -> None:
    """Write header, metadata and tensors, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
