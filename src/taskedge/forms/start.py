"""Training from other values than the base's: a support may bring the change of each entry, and full parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from taskedge.errors import InputError
from taskedge.forms.sparse import FreeEntries, SparseLayer
from taskedge.selection.support import Support


def check_start(support: Support, parameters: Mapping[str, nn.Parameter], form: str) -> None:
    """Check that training can start from the values of a support.

    Args:
        support: may have ``start`` and ``start_full``.
        parameters: of the model, by name.
        form: name of the form that is to be installed.

    Raises:
        InputError: the form computes its entries from factors; a value belongs to nothing that trains; a shape differs
            or a value is not finite.
    """
    if support.start and form != "sparse":
        raise InputError(f"form {form!r} cannot start from the values that the support brings: use the form 'sparse'")
    for name, change in support.start.items():
        entries = len(support.linears.get(name, ()))
        if change.shape != (entries,) or not bool(torch.isfinite(change).all()):
            raise InputError(f"linear {name!r} has {entries} entries, but starts from other or non-finite values")
    for name, value in support.start_full.items():
        if name not in parameters or parameters[name].shape != value.shape or not bool(torch.isfinite(value).all()):
            present = list(parameters[name].shape) if name in parameters else "missing"
            raise InputError(
                f"the support starts parameter {name!r} from finite values of shape {list(value.shape)}, and it is "
                f"{present} in the model: load the base for the same task and labels, or select again"
            )


def set_start(model: nn.Module, support: Support) -> None:
    """Set the installed entries and parameters to the values that the support brings, if it brings any."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in support.start_full.items():
            parameters[name].copy_(value)
        for name, change in support.start.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, SparseLayer)
            entries = layer.entries
            assert isinstance(entries, FreeEntries)
            change = change.to(entries.offsets)
            entries.offsets.copy_(change if entries.step is None else change / entries.step)
