"""``apply`` and ``revert``: a delta goes onto a base and comes off again, bit for bit.

Everything is checked before anything is written; on any failure the model is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskedge.backbone.fingerprint import digest
from taskedge.backbone.layer_adapters import Features
from taskedge.backbone.linears import Linear, as_linear, linears
from taskedge.backbone.storage.frozen_layer import INT8, HeldLayer, plain_dtype, rounded_to_int8
from taskedge.delta.delta import Delta, LinearDelta, LowRankDelta
from taskedge.errors import BaseMismatch, InputError, did_you_mean
from taskedge.forms.install import installation
from taskedge.forms.low_rank import with_product


@dataclass(frozen=True)
class Applied:
    """What a model held before a delta was applied; kept on the model."""

    delta: Delta
    entries: dict[str, Tensor]
    whole: dict[str, Tensor]
    low_rank: dict[str, Tensor]
    """The weights [out, in] to which products were added: subtracting would not give back every bit."""


def apply(model: nn.Module, delta: Delta, *, force: bool = False) -> nn.Module:
    """Writes the delta's values and products into a copy of its base, in place. Applying it again changes nothing.

    Args:
        model: the base, fresh (or with this very delta applied already).
        delta: from :func:`taskedge.load` or :func:`taskedge.extract`.
        force: apply even where the base's values or dtype differ from those that the delta was trained on. Names
            and shapes must fit in any case.

    Returns:
        The same model.

    Raises:
        BaseMismatch: this is not the delta's base; the message says what differs. The model is unchanged.
        InputError: another delta is applied, or a support is installed; a low-rank product is to go into a weight that
            is held (:mod:`taskedge.backbone.storage.frozen_layer`). The model is unchanged.
    """
    if installation(model) is not None:
        raise InputError("the model trains a support: fuse it before a delta is applied")
    before = applied_to(model)
    if before is not None and before.delta is not delta and not _same(before.delta, delta):
        raise InputError("another delta is applied to the model: revert that one first")
    layers = _layers(model, delta)
    parameters = _parameters(model, delta)
    products = _originals(layers, delta) if before is None else before.low_rank
    _check_values(layers, parameters, delta, products)
    if before is None:
        originals = _entries(layers, delta)
        if not force:
            _check_base(layers, parameters, delta, originals | products)
        whole = {name: parameters[name].detach().clone() for name in delta.whole}
        before = Applied(delta, originals, whole, {name: weight.clone() for name, weight in products.items()})
    for name, product in delta.low_rank.items():
        layers[name].weight.copy_(_sum(before.low_rank[name], product))
    for name, linear in delta.linears.items():
        layers[name].write(linear.rows, linear.columns, linear.values)
    with torch.no_grad():
        for name, tensor in delta.whole.items():
            parameters[name].copy_(tensor)
    model.__dict__["_taskedge_applied"] = before
    return model


def check_base(model: nn.Module, delta: Delta) -> None:
    """Raises BaseMismatch where the model, on which nothing is applied, is not the delta's base; changes nothing."""
    layers = _layers(model, delta)
    _check_base(layers, _parameters(model, delta), delta, _entries(layers, delta) | _originals(layers, delta))


def revert(model: nn.Module, delta: Delta | None = None) -> nn.Module:
    """Puts back what the model held before the delta was applied, bit for bit.

    Args:
        model: a model on which :func:`apply` was called.
        delta: the delta to take off; None: the one that is applied.

    Raises:
        InputError: none, or another, is applied.
    """
    before = applied_to(model)
    if before is None:
        raise InputError("no delta is applied to the model, so there is nothing to revert")
    if delta is not None and before.delta is not delta and not _same(before.delta, delta):
        raise InputError("another delta than this one is applied to the model")
    layers, parameters = _layers(model, before.delta), dict(model.named_parameters())
    for name, linear in before.delta.linears.items():
        layers[name].write(linear.rows, linear.columns, before.entries[name])
    for name, weight in before.low_rank.items():
        layers[name].weight.copy_(weight)
    with torch.no_grad():
        for name, tensor in before.whole.items():
            parameters[name].copy_(tensor)
    del model.__dict__["_taskedge_applied"]
    return model


@contextmanager
def applied(model: nn.Module, delta: Delta, *, force: bool = False) -> Iterator[nn.Module]:
    """The model with the delta applied inside the block, and as it was after it."""
    before = applied_to(model)
    apply(model, delta, force=force)
    try:
        yield model
    finally:
        if before is None:
            revert(model, delta)


def applied_to(model: nn.Module) -> Applied | None:
    """What was applied to the model and is still on it, or None."""
    return model.__dict__.get("_taskedge_applied")


def _entries(layers: dict[str, Linear], delta: Delta) -> dict[str, Tensor]:
    """What the model holds at the delta's entries."""
    return {name: layers[name].read(linear.rows, linear.columns) for name, linear in delta.linears.items()}


def _originals(layers: dict[str, Linear], delta: Delta) -> dict[str, Tensor]:
    """The weights [out, in] that products go onto, as they stand in the model."""
    return {name: layers[name].weight for name in delta.low_rank}


def _sum(weight: Tensor, product: LowRankDelta) -> Tensor:
    return with_product(weight, product.a, product.b, product.scale)


def _layers(model: nn.Module, delta: Delta) -> dict[str, Linear]:
    modules = dict(model.named_modules())
    layers = {}
    changed: dict[str, LinearDelta | LowRankDelta] = {**delta.linears, **delta.low_rank}
    for name, linear in changed.items():
        layer = as_linear(name, modules[name]) if name in modules else None
        if layer is None:
            near = did_you_mean(name, linears(model))
            raise BaseMismatch(f"wrong base: the model ({type(model).__name__}) has no linear {name!r}{near}")
        if layer.shape != linear.shape:
            raise BaseMismatch(
                f"wrong base: linear {name!r} is {list(layer.shape)}, the delta was made for {list(linear.shape)}"
            )
        if name in delta.low_rank and isinstance(layer.module, HeldLayer):
            raise InputError(
                f"the weight of linear {name!r} is held and only read, so the delta's product cannot go into it: load "
                "the base with base='loaded'"
            )
        layers[name] = layer
    return layers


def _parameters(model: nn.Module, delta: Delta) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    for name, tensor in delta.whole.items():
        if name not in parameters:
            raise BaseMismatch(
                f"wrong base: the model ({type(model).__name__}) has no parameter {name!r}"
                f"{did_you_mean(name, parameters)}"
            )
        if parameters[name].shape != tensor.shape:
            raise BaseMismatch(
                f"parameter {name!r} is {list(parameters[name].shape)}, the delta holds {list(tensor.shape)}: "
                "load the base with the delta's number of labels"
            )
    return parameters


def _check_values(
    layers: dict[str, Linear], parameters: dict[str, nn.Parameter], delta: Delta, products: dict[str, Tensor]
) -> None:
    """A value that is finite in the delta must be so in the model too."""
    written = [(name, layers[name].stored.dtype, linear.values) for name, linear in delta.linears.items()]
    written += [(name, parameters[name].dtype, tensor) for name, tensor in delta.whole.items()]
    for name, dtype, values in written:
        if dtype != values.dtype and not bool(torch.isfinite(values.to(dtype)).all()):
            raise BaseMismatch(
                f"{name!r} cannot hold the delta's values as {_plain(dtype)}: load the base in the delta's own dtype"
            )
    for name, product in delta.low_rank.items():
        added = _sum(products[name], product).isfinite()
        if not bool((added | ~products[name].isfinite()).all()):
            raise BaseMismatch(
                f"{name!r} cannot hold its weight plus the delta's product as {_plain(products[name].dtype)}: "
                "load the base in the delta's own dtype"
            )


def _check_base(
    layers: dict[str, Linear], parameters: dict[str, nn.Parameter], delta: Delta, originals: dict[str, Tensor]
) -> None:
    changed: dict[str, LinearDelta | LowRankDelta] = {**delta.linears, **delta.low_rank}
    for name, linear in changed.items():
        dtype = plain_dtype(layers[name].module)
        if dtype != linear.base_dtype and INT8 in (dtype, linear.base_dtype):
            if dtype == INT8 or not isinstance(layers[name].kind, Features):
                raise BaseMismatch(
                    f"wrong base: linear {name!r} is {dtype}, the delta was trained on {linear.base_dtype}, and "
                    "whether it was the same cannot be told: load the base as it was in training, or force it"
                )
        elif dtype != linear.base_dtype:
            raise BaseMismatch(
                f"wrong base: linear {name!r} is {dtype}, the delta was trained on {linear.base_dtype}: "
                f"load the base with dtype={linear.base_dtype}, or force it"
            )
    dtypes = {linear.base_dtype for linear in delta.linears.values()}
    for name, tensor in delta.whole.items():
        rounded = tensor.dtype == torch.float32 and not dtypes.isdisjoint({_plain(parameters[name].dtype), INT8})
        if parameters[name].dtype != tensor.dtype and not rounded:
            raise BaseMismatch(
                f"wrong base: parameter {name!r} is {_plain(parameters[name].dtype)}, the delta holds "
                f"{_plain(tensor.dtype)}: load the base with that dtype, or force it"
            )
    found = {name: digest(_as_trained_on(layers[name], delta, originals[name])) for name in changed}
    other = [name for name, linear in changed.items() if found[name] != linear.base_digest]
    if other:
        hint = f" (made on {delta.provenance.base!r})" if delta.provenance.base else ""
        raise BaseMismatch(
            f"wrong base: {len(other)} of {len(changed)} linears hold other values than the base of this "
            f"delta{hint}, {other[0]!r} first: load that base, or force it"
        )


def _as_trained_on(layer: Linear, delta: Delta, original: Tensor) -> Tensor:
    """The base's values at the entries as the training saw them: of a weight that was int8 then, those of its codes."""
    linear = delta.linears.get(layer.name)
    if linear is None or linear.base_dtype != INT8 or plain_dtype(layer.module) == INT8:
        return original
    place = layer.kind.place(linear.rows, linear.columns)
    return rounded_to_int8(layer.module)[tuple(index.to(layer.stored.device) for index in place)]


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _same(one: Delta, other: Delta) -> bool:
    """Whether two deltas would write the same values to the same places."""
    return (
        one.linears.keys() == other.linears.keys()
        and one.low_rank.keys() == other.low_rank.keys()
        and one.whole.keys() == other.whole.keys()
        and all(
            torch.equal(a.rows, b.rows) and torch.equal(a.columns, b.columns) and torch.equal(a.values, b.values)
            for a, b in ((one.linears[name], other.linears[name]) for name in one.linears)
        )
        and all(
            a.scale == b.scale and torch.equal(a.a, b.a) and torch.equal(a.b, b.b)
            for a, b in ((one.low_rank[name], other.low_rank[name]) for name in one.low_rank)
        )
        and all(torch.equal(one.whole[name], other.whole[name]) for name in one.whole)
    )
