"""``extract``: the trained change of a model, as a delta."""

from __future__ import annotations

from typing import cast

from torch import nn

from taskedge.backbone.fingerprint import digest
from taskedge.backbone.linears import Linear, as_linear
from taskedge.backbone.storage.frozen_layer import plain_dtype
from taskedge.delta.delta import Delta, LinearDelta, LowRankDelta, Provenance
from taskedge.forms.install import require_installation
from taskedge.forms.low_rank import LowRankLayer, low_rank_layers
from taskedge.forms.sparse import sparse_layers


def extract(model: nn.Module) -> Delta:
    """What a model learnt on which a support is installed: entries, low-rank products and whole parameters.

    The delta is a copy on the CPU; the model stays as it is and may go on training.

    Raises:
        InputError: nothing is installed on the model.
        DeltaError: a trained value is not finite.
    """
    done = require_installation(model)
    parameters = dict(model.named_parameters())
    support = done.support
    return Delta(
        linears={
            name: LinearDelta(
                shape=support.linears[name].shape,
                rows=support.linears[name].rows,
                columns=support.linears[name].columns,
                values=layer.entries.values.cpu(),
                base_dtype=plain_dtype(layer),
                base_digest=digest(layer.entries.base),
            )
            for name, layer in sparse_layers(model).items()
        },
        whole={name: parameters[name].detach().cpu().clone() for name in done.whole},
        provenance=Provenance(
            rule=support.rule,
            allocation=support.allocation,
            budget=support.budget,
            base=str(getattr(getattr(model, "config", None), "_name_or_path", "")),
            base_parameters=support.model_parameters,
        ),
        low_rank={name: _product(layer) for name, layer in low_rank_layers(model).items()},
    )


def _product(layer: LowRankLayer) -> LowRankDelta:
    weight = cast(Linear, as_linear("", layer)).weight
    return LowRankDelta(
        a=layer.product.a.detach().cpu().clone(),
        b=layer.product.b.detach().cpu().clone(),
        scale=layer.product.scale,
        base_dtype=str(weight.dtype).removeprefix("torch."),
        base_digest=digest(weight),
    )
