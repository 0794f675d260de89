"""Load the base of a delta and apply the delta to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from taskedge.backbone.loading import DTYPES, TASK_AUTO_CLASSES, Base, load_base, locate_base
from taskedge.backbone.storage import current_name
from taskedge.backbone.storage.coding import CODINGS
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.delta.apply import apply, base_difference, check_base, force_apply
from taskedge.delta.delta import Delta, Provenance
from taskedge.delta.file import load
from taskedge.errors import InputError
from taskedge.forms.prompt import with_prompt_room


def load_with_delta(
    path: Path,
    model: str | None = None,
    *,
    head: str | None = None,
    weight_storage: str | None = None,
    force: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> tuple[Base, Delta]:
    """Load a delta and its base, and apply the delta.

    Args:
        path: the delta file.
        model: local folder or hub id of the base; by default the base that the delta names.
        head: name of the head, of a delta for several tasks.
        weight_storage: one of :data:`taskedge.backbone.storage.WEIGHT_STORAGE`; by default the storage of the training.
        force: apply even to a base with other values. How it differs is logged, and recorded in the model's
            :class:`taskedge.delta.apply.Applied`.
        log: receives progress lines.

    Returns:
        The base with the delta applied, in the dtype of the training, and the delta with that head. The delta is
        checked against the base as it was in training, before weights are quantized.

    Raises:
        DeltaError, BaseMismatch, InputError: see :func:`taskedge.load`, :func:`taskedge.apply`,
            :func:`taskedge.backbone.loading.load_base` and
            :func:`taskedge.backbone.storage.set_storage.set_weight_storage`; the delta does not name its task or base.
    """
    delta = load_head(path, head)
    provenance = delta.provenance
    if provenance.task not in TASK_AUTO_CLASSES:
        raise InputError(
            f"{path}: the delta does not name a known task ({', '.join(TASK_AUTO_CLASSES)}), so no base can be loaded"
        )
    if provenance.task.endswith("classification") and not provenance.labels:
        raise InputError(f"{path}: the delta names no labels, so it was not made by 'taskedge tune' for a classifier")
    if not (model or provenance.base):
        raise InputError(f"{path}: the delta does not name its base: give it with --model")
    dtype = recorded_dtype(delta) or str(provenance.training.get("dtype", "auto"))
    name = model or base_location(path, provenance)
    try:
        base = load_base(provenance.task, name, provenance.labels, dtype=dtype, keep_head=True, log=log)
    except InputError as error:
        if model:
            raise
        raise _named_by_delta(error, path) from None
    if weight_storage is None:
        training = provenance.training
        weight_storage = current_name(str(training.get("weight_storage", training.get("base", "resident"))))
    difference = base_difference(base.model, delta) if force else ""
    if difference:
        log(f"forced: {difference}")
    incomparable = weight_storage in CODINGS and not _trained_on(weight_storage, delta)
    if incomparable and not force:
        check_base(base.model, delta)
    stored = set_weight_storage(base.model, weight_storage, log)
    if force or incomparable:
        force_apply(stored, delta, difference)
    else:
        apply(stored, delta)
    return with_prompt_room(base), delta


def load_head(path: Path, head: str | None) -> Delta:
    """Read a delta file, for one of its tasks if it is for several.

    Raises:
        DeltaError, InputError: see :func:`taskedge.load`; there is no such head, or none of several is named.
    """
    delta = load(path)
    try:
        return delta.with_head(head)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def base_location(path: Path, provenance: Provenance) -> str:
    """Return the folder or hub id of the base that a delta file names; empty if it names none.

    A relative path is looked up from the current folder, then from the folder of the delta.

    Raises:
        InputError: the delta names a folder that does not exist.
    """
    try:
        return locate_base(provenance.base, path.parent)
    except InputError as error:
        raise _named_by_delta(error, path) from None


def _named_by_delta(error: InputError, path: Path) -> InputError:
    return InputError(f"{error}; {path} names it as its base: give its location with --model")


def recorded_dtype(delta: Delta) -> str:
    """Return the dtype of the base's weights in training, as ``load_base`` names it; empty if it has no such name.

    The files of a base may have another dtype: a program can load it in any.
    """
    recorded = {linear.base_dtype for linear in delta.linears.values()}
    recorded |= {product.base_dtype for product in delta.low_rank.values()}
    recorded |= set() if delta.prompt is None else {delta.prompt.base_dtype}
    names = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
    return names.get(recorded.pop(), "") if len(recorded) == 1 else ""


def _trained_on(coding: str, delta: Delta) -> bool:
    return any(linear.base_dtype == coding for linear in delta.linears.values())
