"""Set how the frozen weights of a model are stored: resident, memory-mapped, or as codes of 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import Linear
from taskedge.backbone.storage import WEIGHT_STORAGE
from taskedge.backbone.storage.frozen_layer import FrozenWeightLayer, can_freeze, freeze_layer
from taskedge.backbone.storage.memory_map import (
    MAPS,
    FileMapping,
    mapped_tensors,
    release_pages,
    remember_files,
)
from taskedge.errors import InputError, did_you_mean

Model = TypeVar("Model", bound=nn.Module)


def set_weight_storage(model: Model, storage: str, log: Callable[[str], None] = lambda _: None) -> Model:
    """Set how the weights of the linears that may carry entries are stored; other parameters stay as they are.

    One linear after the other is converted, so a base that the loader has mapped is never in memory as a whole.

    Args:
        model: as it was loaded, with nothing installed and no delta applied. A model whose weight storage was set
            before is left unchanged.
        storage: ``"int8"``: a code of 8 bits per weight and a scale per neuron. ``"int4"``: a code of 4 bits, and a
            scale and an offset per group of 32 inputs. ``"mmap"``: the loader's mapping of
            the file, never written to, so that it stays shared with other processes. ``"resident"`` does nothing.
        log: receives a line about the memory saved.

    Returns:
        The same model.

    Raises:
        InputError: an unknown storage; no linear can be frozen; no weight is mapped; weights that are not finite: the
            model is unusable then.
    """
    if storage not in WEIGHT_STORAGE:
        hint = did_you_mean(storage, WEIGHT_STORAGE)
        raise InputError(f"unknown weight storage {storage!r}{hint} (known: {', '.join(WEIGHT_STORAGE)})")
    if storage == "resident" or any(isinstance(module, FrozenWeightLayer) for module in model.modules()):
        return model
    layers = {name: linear for name, linear in candidates(model).items() if can_freeze(linear.module)}
    if not layers:
        raise InputError(
            f"no linear of {type(model).__name__} is a plain one: load the base with weight storage 'resident'"
        )
    in_files = mapped_tensors(model.parameters())
    if storage == "mmap":
        _check_mapped(model, in_files, log)
        remember_files(model, in_files)
        for name, linear in layers.items():
            freeze_layer(name, linear.module)
    else:
        _convert_to_codes(model, layers, in_files, storage, log)
    return model


def _convert_to_codes(
    model: nn.Module,
    layers: dict[str, Linear],
    in_files: dict[FileMapping, list[Tensor]],
    coding: str,
    log: Callable[[str], None],
) -> None:
    addresses = {tensor.data_ptr() for tensors in in_files.values() for tensor in tensors}
    _copy_small_parameters(model, addresses)
    bytes_before = bytes_after = 0
    released: list[Tensor] = []
    for name, linear in layers.items():
        weight = linear.stored
        layer = freeze_layer(name, linear.module, coding)
        bytes_before += weight.nbytes
        frozen = layer.frozen_weight
        bytes_after += frozen.weight.nbytes + (0 if frozen.scale is None else frozen.scale.nbytes)
        if weight.data_ptr() in addresses:
            released.append(weight)
            release_pages(weight)
    for weight in released:  # again: reading the next weights also loaded pages near them
        release_pages(weight)
    sizes = f"{bytes_after / 1e6:.1f} MB, not {bytes_before / 1e6:.1f}"
    log(f"the weights of {len(layers)} linears are stored as {coding}: {sizes}")


def _copy_small_parameters(model: nn.Module, addresses: set[int]) -> None:
    """Copy biases and norms out of the file: reading them there would also load nearby pages that nothing reads."""
    for parameter in model.parameters():
        if parameter.dim() < 2 and parameter.data_ptr() in addresses:
            parameter.data = parameter.data.clone()


def _check_mapped(model: nn.Module, in_files: dict[FileMapping, list[Tensor]], log: Callable[[str], None]) -> None:
    """Log how much of the model is mapped; raise if nothing is and the system could tell."""
    mapped_bytes = sum(tensor.nbytes for tensors in in_files.values() for tensor in tensors)
    if not mapped_bytes and MAPS.exists():
        raise InputError(
            f"no weight of {type(model).__name__} is mapped from a file: its dtype is not the dtype of the files, "
            "or the loader read them into memory: leave --dtype at 'auto', or load the base with "
            "weight storage 'resident'"
        )
    if mapped_bytes:
        all_bytes = sum(parameter.nbytes for parameter in model.parameters())
        files = ", ".join(sorted({str(mapping.path) for mapping in in_files}))
        log(f"{mapped_bytes / 1e6:.1f} of {all_bytes / 1e6:.1f} MB of the base are mapped from {files}")
