"""``apply`` and ``revert``: write a delta into a base and restore the base bit for bit.

All checks are done before the first write, so an error leaves the model unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from taskedge.backbone.by_name import modules_and_parameters, modules_named
from taskedge.backbone.fingerprint import digest
from taskedge.backbone.gguf_file import check_gguf, gguf_differences
from taskedge.backbone.layers import Linear, LinearAdapter, as_linear, linears
from taskedge.backbone.storage.coding import CODINGS, rounded_weight
from taskedge.delta.delta import Delta, LinearDelta, LowRankDelta
from taskedge.delta.entry_access import changed_weight, read_entries, write_values
from taskedge.delta.prompt_delta import apply_prompt, prompt_difference
from taskedge.delta.same_delta import same_delta
from taskedge.errors import BaseMismatch, InputError, did_you_mean
from taskedge.forms.filtered import attach_filtered, remove_filtered
from taskedge.forms.install import installation
from taskedge.forms.norms import statistics_of
from taskedge.forms.prompt import remove_prompt


@dataclass(frozen=True)
class Applied:
    """The values of the base before a delta was applied; stored on the model.

    Attributes:
        delta: the applied delta.
        entries: values at the delta's entries, by linear.
        full_parameters: values of the parameters that the delta replaces.
        low_rank: weights [out, in] to which products were added; subtracting a product would not restore every bit.
            They also hold the base's values at entries of these linears.
        forced: how the model differs from the delta's base, if :func:`force_apply` applied it nevertheless.
    """

    delta: Delta
    entries: dict[str, Tensor]
    full_parameters: dict[str, Tensor]
    low_rank: dict[str, Tensor]
    forced: str = ""


def apply(model: nn.Module, delta: Delta, *, force: bool = False) -> nn.Module:
    """Write the delta's values and products into its base, in place. Applying a delta again changes nothing.

    Args:
        model: the base, or the base with this delta applied.
        delta: from :func:`taskedge.load` or :func:`taskedge.extract`.
        force: also apply to a base with other values or another dtype than the delta was trained on. Names and shapes
            must match in any case.

    Returns:
        The same model.

    Raises:
        BaseMismatch: the model is not the delta's base; the message says what differs. The model is unchanged.
        InputError: another delta is applied, a support is installed, or a weight that gets a low-rank product is
            read-only (:mod:`taskedge.backbone.storage.frozen_layer`). The model is unchanged.
    """
    if installation(model) is not None:
        raise InputError("the model trains a support: fuse it before a delta is applied")
    delta = delta.with_head(None)
    before = applied_to(model)
    if before is not None and before.delta is not delta and not same_delta(before.delta, delta):
        raise InputError("another delta is applied to the model: revert that one first")
    layers, parameters = _layers_and_parameters(model, delta)
    products = _originals(layers, delta) if before is None else before.low_rank
    _check_values(layers, parameters, delta, products)
    if before is None:
        originals = _values_at_entries(layers, delta)
        if not force:
            check_gguf(model, delta.provenance.training)
            _check_prompt(model, delta)
            _check_base(layers, parameters, delta, originals | products)
        before = Applied(
            delta,
            entries=originals,
            full_parameters={name: parameters[name].detach().clone() for name in delta.full_parameters},
            low_rank={name: weight.clone() for name, weight in products.items()},
        )
    for name in delta.low_rank:
        if name not in delta.filters:
            layers[name].overwrite(changed_weight(before.low_rank[name], delta, name))
    if delta.filters:
        factors = {name: (product.a, product.b, product.scale) for name, product in delta.low_rank.items()}
        attach_filtered(model, factors, {name: (one.kind, one.tensors) for name, one in delta.filters.items()})
    apply_prompt(model, delta.prompt)
    for name, linear in delta.linears.items():
        if name not in delta.low_rank:  # else they were written with the product
            write_values(layers[name], linear, linear.values)
    with torch.no_grad():
        for name, tensor in delta.full_parameters.items():
            parameters[name].copy_(tensor)
    model.__dict__["_taskedge_applied"] = before
    return model


def force_apply(model: nn.Module, delta: Delta, difference: str | None = None) -> nn.Module:
    """Apply a delta to a base that may hold other values, and record how the base differs in :class:`Applied`.

    Args:
        model: see :func:`apply`.
        delta: see :func:`apply`.
        difference: result of :func:`base_difference` on the model as it was in training, if the weights are stored in
            another form now; by default it is computed here.

    Raises:
        BaseMismatch, InputError: see :func:`apply`; names and shapes must match.
    """
    is_applied = applied_to(model) is not None
    if difference is None and not is_applied:
        difference = base_difference(model, delta)
    apply(model, delta, force=True)
    if not is_applied:
        model.__dict__["_taskedge_applied"] = replace(model.__dict__["_taskedge_applied"], forced=difference)
    return model


def check_base(model: nn.Module, delta: Delta) -> None:
    """Raise BaseMismatch if a model without an applied delta is not the delta's base. The model is not changed."""
    layers, parameters = _layers_and_parameters(model, delta)
    check_gguf(model, delta.provenance.training)
    _check_prompt(model, delta)
    _check_base(layers, parameters, delta, _values_at_entries(layers, delta) | _originals(layers, delta))


def base_difference(model: nn.Module, delta: Delta) -> str:
    """Return how a model without an applied delta differs from the delta's base, in numbers; empty if it does not.

    Raises:
        BaseMismatch: names or shapes differ, so the delta cannot be applied at all.
    """
    layers, parameters = _layers_and_parameters(model, delta)
    originals = _values_at_entries(layers, delta) | _originals(layers, delta)
    changed: dict[str, LinearDelta | LowRankDelta] = {**delta.linears, **delta.low_rank}
    other_dtype = [name for name, linear in changed.items() if _dtype_mismatch(layers[name], linear) is not None]
    comparable = [name for name in changed if name not in other_dtype]
    other_values = _with_other_values(layers, delta, originals, comparable)
    other_parameters = _with_other_dtype(parameters, delta)
    texts = gguf_differences(model, delta.provenance.training)
    texts += [text] if (text := prompt_difference(model, delta.prompt)) else []
    if other_values:
        texts.append(f"{len(other_values)} of {len(changed)} linears hold other values than the delta's base")
    if other_dtype:
        first = other_dtype[0]
        texts.append(
            f"{len(other_dtype)} of {len(changed)} linears have another dtype than the delta's base "
            f"({layers[first].storage_dtype}, not {changed[first].base_dtype})"
        )
    if other_parameters:
        texts.append(
            f"{len(other_parameters)} of {len(delta.full_parameters)} parameters in full have another dtype "
            f"({_plain(parameters[other_parameters[0]].dtype)}, not "
            f"{_plain(delta.full_parameters[other_parameters[0]].dtype)})"
        )
    return "; ".join(texts)


def revert(model: nn.Module, delta: Delta | None = None) -> nn.Module:
    """Restore the values of the model before the delta was applied, bit for bit.

    Args:
        model: a model on which :func:`apply` was called.
        delta: the delta to revert; None for the applied one.

    Returns:
        The same model.

    Raises:
        InputError: no delta, or another one, is applied.
    """
    before = applied_to(model)
    delta = None if delta is None else delta.with_head(None)
    if before is None:
        raise InputError("no delta is applied to the model, so there is nothing to revert")
    if delta is not None and before.delta is not delta and not same_delta(before.delta, delta):
        raise InputError("another delta than this one is applied to the model")
    layers = _layers(model, modules_named(model, [*before.delta.linears, *before.delta.low_rank]), before.delta)
    for name, linear in before.delta.linears.items():
        write_values(layers[name], linear, before.entries[name])
    if before.delta.filters:
        remove_filtered(model)
    if before.delta.prompt is not None:
        remove_prompt(model)
    for name, weight in before.low_rank.items():
        layers[name].overwrite(weight)
    with torch.no_grad():
        for name, tensor in before.full_parameters.items():
            _parameter(model, name).copy_(tensor)
    del model.__dict__["_taskedge_applied"]
    return model


@contextmanager
def applied(model: nn.Module, delta: Delta, *, force: bool = False) -> Iterator[nn.Module]:
    """Apply the delta inside the block and revert it on exit, unless it was applied before.

    Args:
        model: see :func:`apply`.
        delta: see :func:`apply`.
        force: apply even to a base with other values, and record how it differs (:func:`force_apply`).
    """
    before = applied_to(model)
    if force:
        force_apply(model, delta)
    else:
        apply(model, delta)
    try:
        yield model
    finally:
        if before is None:
            revert(model, delta)


def applied_to(model: nn.Module) -> Applied | None:
    """Return the record of the delta that is applied to the model, or None."""
    return model.__dict__.get("_taskedge_applied")


def _values_at_entries(layers: dict[str, Linear], delta: Delta) -> dict[str, Tensor]:
    """Return the model's values at the delta's entries, by linear."""
    return {name: read_entries(layers[name], linear) for name, linear in delta.linears.items()}


def _originals(layers: dict[str, Linear], delta: Delta) -> dict[str, Tensor]:
    """Return the weights [out, in] to which products are added, by linear."""
    return {name: layers[name].weight for name in delta.low_rank}


def _layers_and_parameters(model: nn.Module, delta: Delta) -> tuple[dict[str, Linear], dict[str, nn.Parameter]]:
    """Return the layers that the delta changes and the model's parameters, by name, after checking that all fit."""
    modules, parameters = modules_and_parameters(model)
    layers = _layers(model, modules, delta)
    parameters |= cast(dict[str, nn.Parameter], statistics_of(model, delta.full_parameters))
    _check_parameters(model, parameters, delta)
    return layers, parameters


def _layers(model: nn.Module, modules: dict[str, nn.Module], delta: Delta) -> dict[str, Linear]:
    layers: dict[str, Linear] = {}
    every: dict[str, Linear] = {}
    changed: dict[str, LinearDelta | LowRankDelta] = {**delta.linears, **delta.low_rank}
    for name, linear in changed.items():
        layer = as_linear(name, modules[name]) if name in modules else None
        if layer is None:  # one expert of several, or unknown; the search takes as long as an apply of a small delta
            every = every or linears(model)
            layer = every.get(name)
        if layer is None:
            near = did_you_mean(name, every)
            raise BaseMismatch(f"wrong base: the model ({type(model).__name__}) has no linear {name!r}{near}")
        if layer.shape != linear.shape:
            raise BaseMismatch(
                f"wrong base: linear {name!r} is {list(layer.shape)}, the delta was made for {list(linear.shape)}"
            )
        if name in delta.low_rank and layer.is_read_only:
            raise InputError(
                f"the weight of linear {name!r} is read-only (coded or mapped from a file), so the delta's product "
                "cannot go into it: load the base with weight storage 'resident'"
            )
        layers[name] = layer
    return layers


def _parameter(model: nn.Module, name: str) -> Tensor:
    """Return a parameter, or a running statistic, of the model that is known to exist."""
    path, _, leaf = name.rpartition(".")
    module = modules_named(model, [path])[path]
    return cast(Tensor, module._parameters.get(leaf, module._buffers.get(leaf)))


def _check_parameters(model: nn.Module, parameters: dict[str, nn.Parameter], delta: Delta) -> None:
    for name, tensor in delta.full_parameters.items():
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


def _check_values(
    layers: dict[str, Linear], parameters: dict[str, nn.Parameter], delta: Delta, products: dict[str, Tensor]
) -> None:
    """Raise BaseMismatch if a value that is finite in the delta overflows in the dtype of the model."""
    written = [(name, layers[name].stored.dtype, linear.values) for name, linear in delta.linears.items()]
    written += [(name, parameters[name].dtype, tensor) for name, tensor in delta.full_parameters.items()]
    for name, dtype, values in written:
        if dtype != values.dtype and not bool(torch.isfinite(values.to(dtype)).all()):
            raise BaseMismatch(
                f"{name!r} cannot hold the delta's values as {_plain(dtype)}: load the base in the delta's own dtype"
            )
    for name in delta.low_rank:
        finite = changed_weight(products[name], delta, name).isfinite()
        if not bool((finite | ~products[name].isfinite()).all()):
            raise BaseMismatch(
                f"{name!r} cannot hold its weight plus the delta's product as {_plain(products[name].dtype)}: "
                "load the base in the delta's own dtype"
            )


def _check_prompt(model: nn.Module, delta: Delta) -> None:
    """Raise BaseMismatch if the word vectors are not those that the delta's soft prompt was trained on."""
    if difference := prompt_difference(model, delta.prompt):
        raise BaseMismatch(f"wrong base: {difference}: load that base, or force it")


def _check_base(
    layers: dict[str, Linear], parameters: dict[str, nn.Parameter], delta: Delta, originals: dict[str, Tensor]
) -> None:
    changed: dict[str, LinearDelta | LowRankDelta] = {**delta.linears, **delta.low_rank}
    for name, linear in changed.items():
        mismatch = _dtype_mismatch(layers[name], linear)
        if mismatch is not None:
            raise BaseMismatch(f"wrong base: {mismatch}, or force it")
    for name in _with_other_dtype(parameters, delta):
        raise BaseMismatch(
            f"wrong base: parameter {name!r} is {_plain(parameters[name].dtype)}, the delta holds "
            f"{_plain(delta.full_parameters[name].dtype)}: load the base with that dtype, or force it"
        )
    other = _with_other_values(layers, delta, originals, list(changed))
    if other:
        hint = f" (made on {delta.provenance.base!r})" if delta.provenance.base else ""
        raise BaseMismatch(
            f"wrong base: {len(other)} of {len(changed)} linears hold other values than the base of this "
            f"delta{hint}, {other[0]!r} first: load that base, or force it"
        )


def _dtype_mismatch(layer: Linear, linear: LinearDelta | LowRankDelta) -> str | None:
    """Return how the storage of a weight differs from the storage in training, with the remedy; None if it fits."""
    dtype = layer.storage_dtype
    if dtype == linear.base_dtype:
        return None
    if dtype not in CODINGS and linear.base_dtype not in CODINGS:
        return (
            f"linear {layer.name!r} is {dtype}, the delta was trained on {linear.base_dtype}: load the base in "
            f"{linear.base_dtype}"
        )
    if dtype in CODINGS or not isinstance(layer.adapter, LinearAdapter):
        return (
            f"linear {layer.name!r} is {dtype}, the delta was trained on {linear.base_dtype}, and their values cannot "
            "be compared: load the base as it was in training"
        )
    return None


def _with_other_dtype(parameters: dict[str, nn.Parameter], delta: Delta) -> list[str]:
    """Return the parameters that the delta replaces and that have a dtype other than in training."""
    dtypes = {linear.base_dtype for linear in delta.linears.values()}
    names = []
    for name, tensor in delta.full_parameters.items():
        rounded = tensor.dtype == torch.float32 and not dtypes.isdisjoint({_plain(parameters[name].dtype), *CODINGS})
        if parameters[name].dtype != tensor.dtype and not rounded:
            names.append(name)
    return names


def _with_other_values(
    layers: dict[str, Linear], delta: Delta, originals: dict[str, Tensor], names: list[str]
) -> list[str]:
    """Return those of the linears ``names`` whose values are not the values in training."""
    changed: dict[str, LinearDelta | LowRankDelta] = {**delta.linears, **delta.low_rank}
    digests = {name: digest(_as_trained_on(layers[name], delta, originals[name])) for name in names}
    return [name for name in names if digests[name] != changed[name].base_digest]


def _as_trained_on(layer: Linear, delta: Delta, original: Tensor) -> Tensor:
    """Return the base's values as they were in training: rounded if the base was stored as codes."""
    linear = delta.linears.get(layer.name)
    if linear is None or linear.base_dtype not in CODINGS or layer.storage_dtype in CODINGS:
        return original
    return rounded_weight(layer, linear.base_dtype)[linear.rows.to(layer.device), linear.columns.to(layer.device)]


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
