"""A delta put to use: its base with the delta applied, ready for the task that it was trained for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from taskedge.backbone.loading import AUTO, Base, load_base
from taskedge.backbone.storage.frozen_layer import INT8
from taskedge.backbone.storage.set_storage import hold
from taskedge.delta.apply import apply, check_base
from taskedge.delta.delta import Delta
from taskedge.delta.file import load
from taskedge.errors import InputError


def load_applied(
    path: Path,
    model: str | None = None,
    *,
    held: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Base, Delta]:
    """The delta at ``path`` applied to a freshly loaded base: the one it names, or ``model``, in the same dtype.

    ``held`` is one of :data:`taskedge.backbone.HOLDS`; None: as in the training. A delta is checked against the
    base as it was trained on, before that is made smaller.

    Raises:
        DeltaError, BaseMismatch, InputError: see :func:`taskedge.load`, :func:`taskedge.backbone.loading.load_base` and
            :func:`taskedge.apply` and :func:`taskedge.backbone.storage.set_storage.hold`; a delta
            that does not say what it is for.
    """
    delta = load(path)
    made = delta.provenance
    if made.task not in AUTO:
        raise InputError(f"{path}: the delta names no task that is known ({', '.join(AUTO)}), so no base can be loaded")
    if made.task.endswith("classification") and not made.labels:
        raise InputError(f"{path}: the delta names no labels, so it is not one of a classifier made by 'taskedge tune'")
    if not (model or made.base):
        raise InputError(f"{path}: the delta does not name its base: give it with --model")
    try:
        dtype = str(made.training.get("dtype", "auto"))
        base = load_base(made.task, model or made.base, made.labels, dtype=dtype, say=say)
    except InputError as error:
        if model:
            raise
        raise InputError(f"{error}; {path} names it as its base: say where that is with --model") from None
    held = str(made.training.get("base", "loaded")) if held is None else held
    if held == "int8" and not force and not _trained_on_int8(delta):
        check_base(base.model, delta)
        force = True
    apply(hold(base.model, held, say), delta, force=force)
    return base, delta


def _trained_on_int8(delta: Delta) -> bool:
    return any(linear.base_dtype == INT8 for linear in delta.linears.values())
