"""``extract``: the trained change of a model, as a delta."""

from __future__ import annotations

from torch import nn

from taskedge.backbone.digest import digest
from taskedge.delta.delta import Delta, LinearDelta, Provenance
from taskedge.forms.install import require_installation
from taskedge.forms.sparse import sparse_layers


def extract(model: nn.Module) -> Delta:
    """The support, its trained values and the whole parameters of a model on which a support is installed.

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
                base_dtype=str(layer.entries.base.dtype).removeprefix("torch."),
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
    )
