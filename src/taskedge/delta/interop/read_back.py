"""Read an adapter, a patch or a merged folder back, and put what it says into the base: the other side of a self-check.

A reader gets the model with the delta applied and the written path, and returns a function from a batch to logits. It
computes with what is in the files, and with the base's own values for everything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.layers import linears
from taskedge.delta.apply import applied_to
from taskedge.delta.interop.export import Source
from taskedge.delta.interop.self_check import Batch, logits_of

Change = Callable[[Tensor], Tensor]
"""The weight [out, in] of the base to the weight that a reader computes with."""


def adapter_reader(source: Source, path: Path) -> Callable[[Batch], Tensor]:
    """Return the logits by a PEFT folder, as a reader without patterns computes them: one rank and one alpha."""
    config, changes, parameters = read_changes(path)
    parameters = base_parameters(source) | parameters
    weights = changed_weights(source, {name: _adapter_change(config, parts) for name, parts in changes.items()})

    def run(batch: Batch) -> Tensor:
        with replaced(source.model, weights, parameters):
            return logits_of(source.model, batch)

    return run


def merged_reader(source: Source, path: Path) -> Callable[[Batch], Tensor]:
    """Return the logits of a merged folder, loaded by transformers."""
    loaded = type(source.model).from_pretrained(path, dtype=next(source.model.parameters()).dtype)  # type: ignore[attr-defined]
    return lambda batch: logits_of(loaded, batch)


def changed_weights(source: Source, changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """Return the base's weights [out, in] after changes, by linear; one that a file leaves out is the base's own."""
    layers, before = linears(source.model), applied_to(source.model)
    assert before is not None  # export() has applied the delta
    weights = {}
    for name in {**source.delta.linears, **source.delta.low_rank}:
        if name in before.low_rank:
            weight = before.low_rank[name]
        else:
            entries = source.delta.linears[name]
            weight = layers[name].weight.clone()
            weight[entries.rows, entries.columns] = before.entries[name].to(weight.dtype)
        weights[name] = changes[name](weight.float()) if name in changes else weight
    missing = changes.keys() - weights.keys()
    return weights | {name: changes[name](layers[name].weight.float()) for name in missing}


def base_parameters(source: Source) -> dict[str, Tensor]:
    """Return the base's values of the parameters that the delta replaces in full."""
    before = applied_to(source.model)
    assert before is not None
    return dict(before.full_parameters)


@contextmanager
def replaced(
    model: nn.Module, weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """Put other weights [out, in] and parameters, or running statistics, into the model inside the block."""
    layers, named = linears(model), {**dict(model.named_parameters()), **dict(model.named_buffers())}
    given = parameters or {}
    kept = {name: layers[name].weight.clone() for name in weights}
    kept_parameters = {name: named[name].detach().clone() for name in given}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                layers[name].overwrite(weight.to(kept[name].dtype))
            for name, tensor in given.items():
                named[name].copy_(tensor)
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                layers[name].overwrite(weight)
            for name, tensor in kept_parameters.items():
                named[name].copy_(tensor)


def read_changes(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return the config of an adapter folder, its tensors by linear and kind, and its parameters in full."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    changes: dict[str, dict[str, Tensor]] = {}
    parameters: dict[str, Tensor] = {}
    for stored, tensor in load_file(folder / "adapter_model.safetensors").items():
        name = stored.removeprefix("base_model.model.")
        linear, _, kind = name.removesuffix(".weight").rpartition(".")
        if kind.startswith(("lora_", "supertuning_", "shira_")):
            changes.setdefault(linear, {})[kind] = tensor
        else:
            parameters[name] = tensor
    return config, changes, parameters


def _adapter_change(config: Mapping[str, Any], parts: Mapping[str, Tensor]) -> Change:
    def change(weight: Tensor) -> Tensor:
        if "lora_A" in parts:
            scale = float(config["lora_alpha"]) / float(config["r"])
            a, b = parts["lora_A"].float().flatten(1), parts["lora_B"].float().flatten(1)  # of a convolution, 4 dims
            return weight + scale * (b @ a)
        if "shira_indices" in parts:
            rows, columns = parts["shira_indices"].long()
            return weight.index_put((rows, columns), parts["shira_weight"].float(), accumulate=True)
        flat = weight.reshape(-1).index_add(0, parts["supertuning_indices"].long(), parts["supertuning_values"].float())
        return flat.view_as(weight)

    return change
