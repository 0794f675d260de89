"""``extract``: copy the trained change out of a model."""

from __future__ import annotations

from typing import cast

from torch import nn

from taskedge.backbone.fingerprint import digest
from taskedge.backbone.layers import Linear, as_linear
from taskedge.backbone.task_config import task_of_classifier
from taskedge.delta.delta import Delta, LinearDelta, LowRankDelta, Provenance
from taskedge.forms.install import require_installation
from taskedge.forms.low_rank import LowRankLayer, low_rank_layers
from taskedge.forms.sparse import sparse_layers


def extract(model: nn.Module) -> Delta:
    """Return the trained entries, low-rank products and full parameters of a model with an installed support.

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
        },
        full_parameters={name: parameters[name].detach().cpu().clone() for name in installed.full_parameters},
        provenance=Provenance(
            rule=support.rule,
            allocation=support.allocation,
            budget=support.budget,
            base=str(getattr(getattr(model, "config", None), "_name_or_path", "")),
            base_parameters=support.model_parameters,
            task=task,
            labels=labels,
        ),
        low_rank={name: _product(layer) for name, layer in low_rank_layers(model).items()},
    )


def _product(layer: LowRankLayer) -> LowRankDelta:
    weight = cast(Linear, as_linear("", layer)).weight
    a, b = layer.product.factors()
    return LowRankDelta(
        a=a.detach().cpu().clone(),
        b=b.detach().cpu().clone(),
        scale=layer.product.scale,
        base_dtype=str(weight.dtype).removeprefix("torch."),
        base_digest=digest(weight),
    )
