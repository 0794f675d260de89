"""Patch: the changed numbers of each tensor of the base's checkpoint, for servers that update weights in place.

This is the data of vLLM's ``CheckpointWeightPatch`` (checkpoint name, full shape, dtype, flat indices, absolute
values), as one safetensors file; the layout of that file is ours (docs/interoperability.md).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskedge.backbone.linears import linears
from taskedge.delta.interop.export import FILE, Source, exports
from taskedge.errors import InputError

FORMAT = "taskedge-patch/1"


@exports("patch", makes=FILE, loads="safetensors.safe_open({path!r}, framework='pt')")
def patch(source: Source, path: Path) -> dict[str, Any]:
    """A sparse weight patch: per tensor of the checkpoint, flat indices and absolute values.

    Tensors ``NAME.indices`` (int32, int64 for tensors of 2³¹ numbers and more; ascending, none twice) and
    ``NAME.values`` (in the tensor's dtype), both [n]. A parameter that was trained whole, or that a low-rank product
    was added to, has ``NAME.values`` only, [numel]. The metadata ``taskedge`` is JSON: format, base, and the full shape
    of every NAME.

    Raises:
        InputError: a tensor is stored in another form than the model holds it in, so that it has no positions there.
    """
    state = source.model.state_dict()
    names = checkpoint_names(source.model, state)
    layers = linears(source.model)
    products = [f"{name}.weight" for name in source.delta.low_rank]
    places: dict[str, Tensor | None] = dict.fromkeys([*source.delta.whole, *products])
    for name, linear in source.delta.linears.items():
        if not len(linear):
            continue
        at = layers[name].kind.place(linear.rows, linear.columns)
        numbers = np.ravel_multi_index([index.numpy() for index in at], tuple(layers[name].stored.shape))
        places[f"{name}.weight"] = torch.from_numpy(numbers).sort().values
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for parameter, flat in places.items():
        if parameter not in names:
            raise InputError(
                f"the checkpoint stores {parameter!r} in another form than the model holds it, so a patch cannot name "
                "its positions: merge the delta instead"
            )
        stored, values = names[parameter], state[parameter].detach().reshape(-1)
        shapes[stored] = list(state[parameter].shape)
        if flat is not None:
            values = values[flat.to(values.device)]
            tensors[f"{stored}.indices"] = flat.to(_index_dtype(shapes[stored]))
        tensors[f"{stored}.values"] = values.cpu().clone()
    from safetensors.torch import save_file

    manifest = {"format": FORMAT, "base": source.base, "shapes": dict(sorted(shapes.items()))}
    save_file(tensors, path, {"taskedge": json.dumps(manifest, separators=(",", ":"))})
    whole = sum(state[parameter].numel() for parameter, flat in places.items() if flat is None)
    return {"tensors": len(shapes), "entries": source.delta.entries, "whole_parameters": whole}


def checkpoint_names(model: nn.Module, state: dict[str, Tensor]) -> dict[str, str]:
    """The names that the model's own checkpoint has for the tensors of its state, where it stores them as they are.

    transformers renames, and for some models regroups, tensors between the file and the module; ``save_pretrained``
    undoes it, and so does this.
    """
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion

    if not isinstance(model, PreTrainedModel):
        return {name: name for name in state}
    reverted = revert_weight_conversion(model, dict(state))
    stored = {_identity(tensor): name for name, tensor in reverted.items()}
    return {name: stored[_identity(tensor)] for name, tensor in state.items() if _identity(tensor) in stored}


def _identity(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """Equal for two views of the same numbers in the same order."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _index_dtype(shape: list[int]) -> torch.dtype:
    return torch.int32 if math.prod(shape) < 2**31 else torch.int64
