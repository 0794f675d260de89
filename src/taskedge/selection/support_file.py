"""A support as a file for other machines: found on a server, trained on a device, bound to the base by digests.

The file is a support file (:mod:`taskedge.selection.support`) whose header also has ``found``: the name of the base,
what the caller adds, and for each linear the digests of the values that the base has at the entries, or of the whole
weight if the linear has a low-rank product. There is one digest for each way in which a device may store the weight:
unchanged, rounded to bfloat16, and rounded to int8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from taskedge.backbone.fingerprint import digest
from taskedge.backbone.layers import Linear, LinearAdapter, linears
from taskedge.backbone.storage.coding import CODINGS, rounded_weight
from taskedge.errors import InputError, did_you_mean
from taskedge.selection.support import SUPPORT, LayerSupport, Support, load_support, save_support

_FILE = replace(SUPPORT, remedy="write it again with `taskedge select`, or fetch it again")
_FOUND = "found"


def write_support_file(support: Support, path: Path, model: nn.Module, about: Mapping[str, Any] | None = None) -> None:
    """Write a support for other machines, atomically; equal supports of equal bases give equal bytes.

    Args:
        support: was selected on ``model``.
        path: the file to write.
        model: the base, plain.
        about: JSON-able values to keep in the file, such as the task (:func:`found_on`).

    Raises:
        InputError: the model lacks a linear of the support.
        WriteError: the file cannot be written.
    """
    layers = linears(model)
    digests = {
        name: _digests(_layer(layers, name, path), support.linears.get(name))
        for name in (*support.linears, *support.low_rank)
    }
    base = str(getattr(getattr(model, "config", None), "_name_or_path", ""))
    save_support(support, path, {_FOUND: {"base": base, **(about or {}), "digests": digests}})


def found_on(path: Path) -> dict[str, Any]:
    """Return what a support file states about where it was found: the base, and what the writer added.

    Raises:
        InputError: the file cannot be read, is damaged, or states no base.
    """
    found = _FILE.read(path).header.get(_FOUND)
    if not isinstance(found, dict) or not isinstance(found.get("digests"), dict):
        raise InputError(f"{path}: the support does not state its base: write the file with `taskedge select`")
    return cast(dict[str, Any], found)


def read_support_file(path: Path, model: nn.Module, labels: Sequence[str] | None = None) -> Support:
    """Read a support file and check that it was found on this base.

    Args:
        path: from :func:`write_support_file`.
        model: the base, plain, in any dtype and storage.
        labels: classes of the task, in the order of the outputs. A file with values of the head must have the same.

    Raises:
        InputError: the file cannot be read or is damaged; the model lacks one of its linears, or has it in another
            shape, dtype or storage, or with other values (the message names the linear); the labels differ.
    """
    support, found = load_support(path, _FILE), found_on(path)
    if support.start_full and labels is not None and list(labels) != list(found.get("labels") or []):
        raise InputError(
            f"{path}: the support holds a head for the labels {found.get('labels')}, and the data have {list(labels)}: "
            "select with data of these labels"
        )
    layers, digests = linears(model), found["digests"]
    others = []
    names = (*support.linears, *support.low_rank)
    for name in names:
        layer, chosen = _layer(layers, name, path), support.linears.get(name)
        if chosen is not None and layer.shape != chosen.shape:
            raise InputError(
                f"{path}: linear {name!r} of the model is {list(layer.shape)}, the support was found on "
                f"{list(chosen.shape)}: {_remedy(found)}"
            )
        known = digests.get(name) or {}
        if layer.storage_dtype not in known:
            raise InputError(
                f"{path}: linear {name!r} of the model is stored as {layer.storage_dtype}, and the support can be "
                f"compared with {', '.join(known) or 'nothing'} only: load the base with another --dtype or "
                "--weight-storage, or select on this base"
            )
        if known[layer.storage_dtype] != digest(_values(layer.weight, chosen)):
            others.append(name)
    if others:
        raise InputError(
            f"{path}: {len(others)} of {len(names)} linears hold other values than the base of the support, "
            f"{others[0]!r} first: {_remedy(found)}"
        )
    return support


def _remedy(found: Mapping[str, Any]) -> str:
    base = f" ({found['base']!r})" if found.get("base") else ""
    return f"load that base{base}, or select on this one"


def _layer(layers: Mapping[str, Linear], name: str, path: Path) -> Linear:
    if name not in layers:
        raise InputError(f"{path}: the model has no linear {name!r}{did_you_mean(name, layers)}")
    return layers[name]


def _digests(layer: Linear, chosen: LayerSupport | None) -> dict[str, str]:
    """Return the digests by the dtype in which a device may store the weight."""
    values = _values(layer.weight, chosen)
    digests = {layer.storage_dtype: digest(values)}
    if layer.is_read_only or not values.is_floating_point():
        return digests
    digests["bfloat16"] = digest(values.to(torch.bfloat16))
    if chosen is not None and isinstance(layer.adapter, LinearAdapter):
        digests |= {coding: digest(_values(rounded_weight(layer, coding), chosen)) for coding in CODINGS}
    return digests


def _values(weight: Tensor, chosen: LayerSupport | None) -> Tensor:
    """Return the values [n] of a weight [out, in] at the chosen entries; the whole weight if there are none."""
    if chosen is None:
        return weight
    return weight[chosen.rows.to(weight.device), chosen.columns.to(weight.device)]
