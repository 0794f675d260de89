"""The export ``patch``: the changed numbers of each checkpoint tensor, for servers that update weights in place.

The file has the data of vLLM's ``CheckpointWeightPatch`` (checkpoint name, full shape, dtype, flat indices, absolute
values) in one safetensors file. Source of its layout: this project (docs/interoperability.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskedge.backbone.experts import ExpertLinear
from taskedge.backbone.layers import Linear, linears
from taskedge.delta.interop.export import FILE, Source, exports
from taskedge.delta.interop.read_back import base_parameters, changed_weights, replaced
from taskedge.delta.interop.self_check import Batch, logits_of
from taskedge.errors import InputError
from taskedge.io.container import ContainerKind

FORMAT = "taskedge-patch/1"
PATCH = ContainerKind(name="patch", key="taskedge", error=InputError, format=FORMAT, without_digest=(FORMAT,))


def patch_reader(source: Source, path: Path) -> Callable[[Batch], Tensor]:
    """Return the logits of the base's own weights after the lines of docs/interoperability.md that put a patch in."""
    tensors = PATCH.read(path).tensors
    base, before = changed_weights(source, {}), base_parameters(source)

    def run(batch: Batch) -> Tensor:
        with replaced(source.model, base, before):
            state = source.model.state_dict()
            names = checkpoint_names(source.model, state)
            kept = {}
            for name, stored in names.items():
                values = tensors.get(f"{stored}.values")
                if values is None:
                    continue
                kept[name] = state[name].clone()
                where = tensors.get(f"{stored}.indices", torch.arange(state[name].numel()))
                new = state[name].reshape(-1).index_put((where.long().to(values.device),), values)
                state[name].copy_(new.view_as(state[name]))
            try:
                return logits_of(source.model, batch)
            finally:
                for name, tensor in kept.items():
                    state[name].copy_(tensor)

    return run


@exports("patch", makes=FILE, loads="safetensors.safe_open({path!r}, framework='pt')", reads=patch_reader)
def patch(source: Source, path: Path) -> dict[str, Any]:
    """A sparse weight patch: per tensor of the checkpoint, flat indices and absolute values.

    Tensors ``NAME.indices`` (int32, int64 for tensors of 2³¹ numbers and more; strictly ascending) and ``NAME.values``
    (in the tensor's dtype), both [n]. A parameter that was trained in full, or to which a low-rank product was added,
    has only ``NAME.values`` [numel]. The metadata ``taskedge`` is JSON: format, base, and the full shape of every NAME.

    Raises:
        InputError: the checkpoint stores a tensor in another layout than the model, so entries have no position in it.
    """
    state = source.model.state_dict()
    names = checkpoint_names(source.model, state)
    layers = linears(source.model)
    products = [layers[name].parameter for name in source.delta.low_rank]
    positions: dict[str, Tensor | None] = dict.fromkeys([*source.delta.full_parameters, *products])
    for name, linear in source.delta.linears.items():
        if not len(linear) or name in source.delta.low_rank:  # a product changes all of it
            continue
        indices = layers[name].adapter.weight_index(linear.rows, linear.columns)
        flat_indices = np.ravel_multi_index([index.numpy() for index in indices], tuple(layers[name].stored.shape))
        positions = _with_positions(positions, layers[name], torch.from_numpy(flat_indices).sort().values)
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for parameter, flat in positions.items():
        if parameter not in names:
            raise InputError(
                f"the checkpoint stores {parameter!r} in another layout than the model, so a patch cannot name its "
                "positions: merge the delta instead"
            )
        stored, values = names[parameter], state[parameter].detach().reshape(-1)
        shapes[stored] = list(state[parameter].shape)
        if flat is not None:
            values = values[flat.to(values.device)]
            tensors[f"{stored}.indices"] = flat.to(_index_dtype(shapes[stored]))
        tensors[f"{stored}.values"] = values.cpu().clone()
    path.write_bytes(PATCH.pack({"base": source.base, "shapes": dict(sorted(shapes.items()))}, tensors))
    num_full_parameters = sum(state[parameter].numel() for parameter, flat in positions.items() if flat is None)
    return {"tensors": len(shapes), "entries": source.delta.num_entries, "whole_parameters": num_full_parameters}


def _with_positions(positions: dict[str, Tensor | None], layer: Linear, flat: Tensor) -> dict[str, Tensor | None]:
    """Return the positions with those of a linear; an expert's lie in its slice of the parameter of all experts."""
    name, before = layer.parameter, None
    if isinstance(layer.module, ExpertLinear):
        before, flat = positions.get(name), flat + layer.module.expert * layer.stored.numel()
        if name in positions and before is None:  # a product changes all of it
            return positions
    return positions | {name: flat if before is None else torch.cat([before, flat]).sort().values}


def checkpoint_names(model: nn.Module, state: dict[str, Tensor]) -> dict[str, str]:
    """Return the names in the model's checkpoint of the tensors of its state that it stores unchanged.

    transformers renames, and for some models regroups, tensors between file and module. This reverts it, as
    ``save_pretrained`` does.
    """
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion

    if not isinstance(model, PreTrainedModel):
        return {name: name for name in state}
    reverted = revert_weight_conversion(model, dict(state))
    stored = {_identity(tensor): name for name, tensor in reverted.items()}
    return {name: stored[_identity(tensor)] for name, tensor in state.items() if _identity(tensor) in stored}


def _identity(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """Return a key that is equal for two views of the same numbers in the same order."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _index_dtype(shape: list[int]) -> torch.dtype:
    return torch.int32 if math.prod(shape) < 2**31 else torch.int64
