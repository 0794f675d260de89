"""``extract``: copy the trained change out of a model."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from taskedge.backbone.fingerprint import digest
from taskedge.backbone.gguf_file import gguf_provenance
from taskedge.backbone.layers import Linear, as_linear, stored_weight
from taskedge.backbone.task_config import task_of_classifier
from taskedge.delta.delta import CLOSED_LAYERS, Delta, LinearDelta, LowRankDelta, Provenance
from taskedge.delta.filter_delta import FilterDelta
from taskedge.delta.prompt_delta import extracted_prompt
from taskedge.forms.filtered import FilteredProduct, filter_state, filtered_layers
from taskedge.forms.install import require_installation
from taskedge.forms.low_rank import LowRankLayer, low_rank_layers
from taskedge.forms.sparse import sparse_layers
from taskedge.forms.sparse_plus_low_rank import SparsePlusLowRankLayer, base_weight
from taskedge.forms.taps import TapsLayer, changed, layer_gates, taps_layers


def extract(model: nn.Module) -> Delta:
    """Return the trained entries, low-rank products and full parameters of a model with an installed support.

    A layer whose whole weight may change has an entry for each number, and one whose gate is closed has none.
    The delta is a copy on the CPU. The model is not changed and can be trained further. For a classifier of
    transformers, the provenance names the task and the classes of its config.

    Raises:
        InputError: no support is installed on the model.
        DeltaError: a trained value is not finite.
    """
    installed = require_installation(model)
    parameters = dict(model.named_parameters())
    support = installed.support
    task, labels = task_of_classifier(model)
    return Delta(
        linears={
            name: LinearDelta(
                shape=support.linears[name].shape,
                rows=support.linears[name].rows,
                columns=support.linears[name].columns,
                values=layer.entries.values.cpu(),
                base_dtype=cast(Linear, as_linear(name, layer)).storage_dtype,
                base_digest=digest(layer.entries.base),
            )
            for name, layer in sparse_layers(model).items()
            if layer.entries.is_open
        }
        | {name: _whole(name, layer) for name, layer in taps_layers(model).items() if layer.taps_gate.is_open},
        full_parameters={
            **{name: parameters[name].detach().cpu().clone() for name in installed.full_parameters},
            **{name: model.get_buffer(name).detach().cpu().clone() for name in installed.statistics},
        },
        provenance=Provenance(
            rule=support.rule,
            allocation=support.allocation,
            budget=support.budget,
            base=str(getattr(getattr(model, "config", None), "_name_or_path", "")),
            base_parameters=support.model_parameters,
            task=task,
            labels=labels,
            training=_gates(model) | gguf_provenance(model),
        ),
        low_rank={name: _product(layer) for name, layer in low_rank_layers(model).items()},
        filters={name: FilterDelta(*filter_state(layer)) for name, layer in filtered_layers(model).items()},
        prompt=extracted_prompt(model),
    )


def _gates(model: nn.Module) -> dict[str, Any]:
    """Return the names of the layers whose gates are closed, if layers have gates: nothing else in a file has them."""
    gates = layer_gates(model)
    return {CLOSED_LAYERS: [name for name, gate in gates.items() if not gate.is_open]} if gates else {}


def _whole(name: str, layer: TapsLayer) -> LinearDelta:
    linear = cast(Linear, as_linear(name, layer))
    out, inputs = linear.shape
    matrix = linear.adapter.matrix
    base, change = matrix(stored_weight(layer).detach()).cpu(), matrix(layer.taps_change.detach()).cpu()
    values = changed(base.to(torch.promote_types(base.dtype, torch.float32)), change)
    values = torch.where(change == 0, base.to(values.dtype), values)  # a zero of the base keeps its sign
    return LinearDelta(
        shape=(out, inputs),
        rows=torch.arange(out).repeat_interleave(inputs),
        columns=torch.arange(inputs).repeat(out),
        values=values.flatten().float(),
        base_dtype=linear.storage_dtype,
        base_digest=digest(base.flatten()),
    )


def _product(layer: LowRankLayer) -> LowRankDelta:
    weight = cast(Linear, as_linear("", layer)).weight
    if isinstance(layer, SparsePlusLowRankLayer):  # its own weight has trained entries
        weight = base_weight(layer)
    product = layer.product
    a, b = (product.a, product.b) if isinstance(product, FilteredProduct) else product.factors()
    return LowRankDelta(
        a=a.detach().cpu().clone(),
        b=b.detach().cpu().clone(),
        scale=layer.product.scale,
        base_dtype=str(weight.dtype).removeprefix("torch."),
        base_digest=digest(weight),
    )
