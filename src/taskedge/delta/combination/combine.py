"""``combine``: one delta of several, on the union of their supports, by index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.fingerprint import digest
from taskedge.backbone.layers import linears
from taskedge.delta.combination.methods import METHODS, Choice, Masks, Method, merged
from taskedge.delta.combination.overlap import overlaps
from taskedge.delta.combination.task_vectors import (
    SparseVector,
    TaskVector,
    base_values,
    head_of,
    named_vectors,
    task_vector,
)
from taskedge.delta.delta import CLOSED_LAYERS, Delta, Head, LinearDelta, check_name
from taskedge.errors import DeltaError, InputError, UnknownName

Log = Callable[[str], object]


def combine(
    deltas: Sequence[Delta],
    model: nn.Module,
    *,
    method: str = "arithmetic",
    weights: Sequence[float] | float = 1.0,
    density: float | None = None,
    subtract: Sequence[Delta] = (),
    names: Sequence[str] | None = None,
    importance: Sequence[Mapping[str, Tensor]] | None = None,
    densify: bool = False,
    seed: int = 0,
    log: Log = lambda _: None,
) -> Delta:
    """Return one delta that does the tasks of several, or a delta that forgets a task.

    The changes ``value - base`` are merged by index on the union of the supports; no dense tensor is made. Values are
    computed in float64 and rounded once. Entries whose merged change is 0 are left out.

    Parameters outside the shared part of the model (heads) are never merged: the result has one named head for each
    task (:meth:`taskedge.Delta.with_head`), those of subtracted tasks included. Deltas without a head whose task is the
    same give a delta without named heads. Biases and norms that were trained in full are merged like entries.

    Args:
        deltas: the deltas to add; any number of deltas of one base.
        model: the base, without a support or an applied delta. It is not changed, and its head does not matter.
        method: ``"arithmetic"``: the weighted sum (with a density below 1: of the largest changes); ``"ties"``;
            ``"dare"``; ``"breadcrumbs"``; ``"selective"``: the sum of the most important entries.
        weights: factor of each delta, those to subtract included; or one for all.
        density: share of each delta's entries that is kept, above 0 and at most 1; by default that of the method.
        subtract: deltas whose change is subtracted.
        names: names of the deltas, then of those to subtract; by default ``task1``, ``task2``, ...
        importance: for ``"selective"``, of each delta in the order of ``names``:
            :func:`taskedge.delta.combination.importance.entry_importance`.
        densify: make entries of every number of a weight that carries a low-rank product.
        seed: for ``"dare"``.
        log: called with lines: overlaps of the supports, then what was kept and left out.

    Returns:
        The combined delta.

    Raises:
        BaseMismatch: the model is not the base of a delta; the message names the delta.
        InputError: no delta, an unknown method, a number out of range, an ``importance`` that is missing or not needed,
            a low-rank product without ``densify``, a weight that one delta changes by entries and another in full, or
            two heads of one name.
    """
    every = [*deltas, *subtract]
    if not every:
        raise InputError("there is no delta to combine: give one or more")
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    rule = METHODS[method]
    names = _checked_names(names, len(every))
    factors = _checked_weights(weights, len(every))
    density = rule.density if density is None else density
    if not 0 < density <= 1:
        raise InputError(f"a density of {density} keeps no share of a support: give a number above 0 and at most 1")
    if (importance is not None) != rule.needs_importance:
        need = "needs" if rule.needs_importance else "does not use"
        raise InputError(f"method {method!r} {need} the importance of entries of each delta")
    if importance is not None and len(importance) != len(every):
        raise InputError(f"{len(importance)} importances for {len(every)} deltas: give one for each")
    for delta, name in zip(every, names, strict=True):
        if any(head.gated for head in delta.heads.values()):
            raise InputError(
                f"{name}: its tasks {', '.join(delta.heads)} have entries of their own beside the shared ones: combine "
                "the deltas of single tasks"
            )
    vectors = [task_vector(model, delta, name, densify=densify) for delta, name in zip(every, names, strict=True)]
    _check_compatible(names, vectors)
    for line in overlaps(names, vectors):
        log(str(line))
    vectors = [vector.negated() if index >= len(deltas) else vector for index, vector in enumerate(vectors)]
    generator = torch.Generator().manual_seed(seed)
    of_each: Sequence[Mapping[str, Tensor] | None] = importance or [None] * len(every)
    masks = [
        rule.keep(vector, Choice(density, generator, of_one)) for vector, of_one in zip(vectors, of_each, strict=True)
    ]
    scale = 1 / density if rule.rescale else 1.0
    parts = _merged_parts(vectors, masks, factors, scale, rule)
    result = _delta_of(model, vectors, parts)
    _log_result(vectors, masks, result, names, log)
    full_parameters, heads, provenance = _heads(model, every, names)
    about = {
        "combined": {
            "method": method, "deltas": list(names), "weights": factors.tolist(), "density": density,
            "subtracted": list(names[len(deltas) :]), "seed": seed,
        }
    }  # fmt: skip
    training = {key: value for key, value in provenance.training.items() if key != CLOSED_LAYERS}
    return replace(
        result,
        full_parameters=result.full_parameters | full_parameters,
        heads=heads,
        provenance=replace(provenance, training=training | about | _closed_layers(every, result)),
    )


def _closed_layers(deltas: Sequence[Delta], result: Delta) -> dict[str, Any]:
    """Return the layers whose gates are closed in all deltas, if all have gates on layers."""
    closed = [delta.provenance.training.get(CLOSED_LAYERS) for delta in deltas]
    if any(names is None for names in closed):
        return {}
    known = dict.fromkeys(name for names in closed for name in names or ())
    return {CLOSED_LAYERS: [name for name in known if name not in result.linears]}


def _checked_names(names: Sequence[str] | None, count: int) -> list[str]:
    names = [f"task{number}" for number in range(1, count + 1)] if names is None else list(names)
    if len(names) != count or len(set(names)) != count:
        raise InputError(f"{len(set(names))} different names for {count} deltas: give each delta a name of its own")
    for name in names:
        try:
            check_name("delta", name)
        except DeltaError as error:
            raise InputError(str(error)) from None
    return names


def _checked_weights(weights: Sequence[float] | float, count: int) -> Tensor:
    factors = torch.tensor([weights] * count if isinstance(weights, int | float) else list(weights)).double()
    if factors.shape != (count,):
        raise InputError(f"{factors.numel()} weights for {count} deltas: give one, or one for each")
    if not bool(factors.isfinite().all()):
        raise InputError("a weight is not a finite number")
    return factors


def _check_compatible(names: Sequence[str], vectors: Sequence[TaskVector]) -> None:
    """Raise InputError if two deltas change one weight in ways that cannot be added."""
    owners: dict[str, tuple[str, str]] = {}
    for name, vector in zip(names, vectors, strict=True):
        for linear, dtype in vector.base_dtypes.items():
            first, other = owners.setdefault(linear, (name, dtype))
            if dtype != other:
                raise InputError(
                    f"linear {linear!r} was {other} in the training of {first} and {dtype} in that of {name}: combine "
                    "deltas that were trained on one storage of the base"
                )
    for name, vector in zip(names, vectors, strict=True):
        for parameter in vector.parameters:
            linear = parameter.removesuffix(".weight")
            if linear in owners:
                raise InputError(
                    f"{name} replaces {parameter!r} in full, and {owners[linear][0]} changes entries of it: combine "
                    "deltas that change it in the same way"
                )


def _merged_parts(
    vectors: Sequence[TaskVector], masks: Sequence[Masks], weights: Tensor, scale: float, rule: Method
) -> dict[str, SparseVector]:
    """Return the merged change of each linear and parameter that some delta changes."""
    named = [named_vectors(vector) for vector in vectors]
    parts = {}
    for name in dict.fromkeys(name for one in named for name in one):
        having = [index for index, one in enumerate(named) if name in one]
        parts[name] = merged(
            [named[index][name] for index in having],
            [masks[index][name] for index in having],
            weights[having],
            [scale] * len(having),
            rule,
        )
    return parts


def _delta_of(model: nn.Module, vectors: Sequence[TaskVector], parts: Mapping[str, SparseVector]) -> Delta:
    """Return the merged changes as absolute values, without heads; entries that do not change are left out."""
    layers, parameters = linears(model), dict(model.named_parameters())
    dtypes = {name: dtype for vector in vectors for name, dtype in vector.base_dtypes.items()}
    changed, full_parameters = {}, {}
    for name, part in parts.items():
        if name not in dtypes:
            base = parameters[name].detach().cpu()
            values = base.double().flatten()
            values[part.flat] += part.differences
            full_parameters[name] = values.view(base.shape).to(torch.promote_types(base.dtype, torch.float32))
            continue
        shape = (part.shape[0], part.shape[1])
        rows, columns = part.flat // shape[1], part.flat % shape[1]
        base = base_values(layers[name], rows, columns, dtypes[name]).cpu()
        values = (base.double() + part.differences).float()
        moved = values != base.float()
        changed[name] = LinearDelta(
            shape, rows[moved], columns[moved], values[moved], dtypes[name], digest(base[moved])
        )
    return Delta(changed, full_parameters)


def _log_result(
    vectors: Sequence[TaskVector], masks: Sequence[Masks], result: Delta, names: Sequence[str], log: Log
) -> None:
    for name, vector, kept in zip(names, vectors, masks, strict=True):
        log(f"{name}: {sum(int(mask.sum()) for mask in kept.values()):,} of {len(vector):,} changes are kept")
    union = {name: 0 for vector in vectors for name in vector.linears}
    for name in union:
        flat = torch.cat([vector.linears[name].flat for vector in vectors if name in vector.linears])
        union[name] = len(flat.unique())  # type: ignore[no-untyped-call]
    total = sum(union.values())
    log(
        f"combined: {result.num_entries:,} entries; {total - result.num_entries:,} of the {total:,} in the union of "
        "the supports do not change the base and are left out"
    )


def _heads(
    model: nn.Module, deltas: Sequence[Delta], names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Head], Any]:
    """Return the head's parameters, the named heads and the provenance of the result; the first or second is empty."""
    heads: dict[str, Head] = {}
    for name, delta in zip(names, deltas, strict=True):
        own = delta.heads or {name: Head({}, delta.provenance)}
        for key, head in own.items():
            full = Head(head.full_parameters | head_of(model, delta), head.provenance)
            if key in heads and not _same_head(heads[key], full):
                raise InputError(f"two deltas have different heads of the name {key!r}: give the deltas other names")
            heads[key] = full
    first = next(iter(heads.values()))
    alike = all(not head.full_parameters and _task(head) == _task(first) for head in heads.values())
    if len(heads) == 1 or alike:
        return dict(first.full_parameters), {}, first.provenance
    tasks = {head.provenance.task for head in heads.values()}
    common = replace(
        first.provenance, rule="combined", allocation="combined", budget="", labels=(), training={},
        task=tasks.pop() if len(tasks) == 1 else "",
    )  # fmt: skip
    return {}, heads, common


def _task(head: Head) -> tuple[Any, ...]:
    about = head.provenance
    return about.task, about.labels, about.training.get("generation"), about.training.get("target")


def _same_head(one: Head, other: Head) -> bool:
    mine, theirs = one.full_parameters, other.full_parameters
    same = mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    return same and _task(one) == _task(other)
