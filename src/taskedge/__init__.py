"""Adapt large pretrained models on the devices that have the data.

>>> import taskedge as te
>>> support = te.select(model, batches, budget="0.1%")      # choose which of the model's own weights to train
>>> te.install(model, support)                              # make them trainable in place, freeze all others
>>> ...                                                     # any training loop
>>> te.save(te.extract(model), "task.safetensors")          # write the trained change to a small file
>>> te.apply(fresh_model, te.load("task.safetensors"))      # apply it to the base; te.revert undoes that

Names are imported when they are first used, so ``import taskedge`` and ``taskedge --help`` are fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from taskedge.errors import BaseMismatch, BudgetError, DeltaError, InputError, TaskEdgeError

__version__ = "0.1.0"

if TYPE_CHECKING:
    from taskedge.delta.apply import applied as applied
    from taskedge.delta.apply import apply as apply
    from taskedge.delta.apply import revert as revert
    from taskedge.delta.combination.combine import combine as combine
    from taskedge.delta.delta import Delta as Delta
    from taskedge.delta.extract import extract as extract
    from taskedge.delta.file import load as load
    from taskedge.delta.file import save as save
    from taskedge.delta.interop.export import export as export
    from taskedge.forms.install import fuse as fuse
    from taskedge.forms.install import install as install
    from taskedge.forms.recompute import recomputing as recomputing
    from taskedge.selection.select import select as select
    from taskedge.selection.support import Support as Support

_HOME = {
    "select": "taskedge.selection.select",
    "Support": "taskedge.selection.support",
    "install": "taskedge.forms.install",
    "fuse": "taskedge.forms.install",
    "recomputing": "taskedge.forms.recompute",
    "extract": "taskedge.delta.extract",
    "Delta": "taskedge.delta.delta",
    "save": "taskedge.delta.file",
    "load": "taskedge.delta.file",
    "apply": "taskedge.delta.apply",
    "revert": "taskedge.delta.apply",
    "applied": "taskedge.delta.apply",
    "combine": "taskedge.delta.combination.combine",
    "export": "taskedge.delta.interop.export",
}

__all__ = ["BaseMismatch", "BudgetError", "DeltaError", "InputError", "TaskEdgeError", "__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'taskedge' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
