"""A delta put to use: its base with the delta applied, ready to label texts."""

from __future__ import annotations

from pathlib import Path

from taskedge.backbone.load import Base, load_classifier
from taskedge.delta.apply import apply
from taskedge.delta.delta import Delta
from taskedge.delta.file import load
from taskedge.errors import InputError


def load_applied(path: Path, model: str | None = None, *, force: bool = False) -> tuple[Base, Delta]:
    """The delta at ``path`` applied to a freshly loaded base: the one it names, or ``model``.

    Raises:
        DeltaError, BaseMismatch, InputError: see :func:`taskedge.load`, :func:`taskedge.apply`; a delta without labels.
    """
    delta = load(path)
    made = delta.provenance
    if not made.labels:
        raise InputError(
            f"{path}: the delta names no labels, so it is not one of a text classifier made by 'taskedge tune'"
        )
    if not (model or made.base):
        raise InputError(f"{path}: the delta does not name its base: give it with --model")
    try:
        base = load_classifier(model or made.base, made.labels)
    except InputError as error:
        if model:
            raise
        raise InputError(f"{error}; {path} names it as its base: say where that is with --model") from None
    apply(base.model, delta, force=force)
    return base, delta
