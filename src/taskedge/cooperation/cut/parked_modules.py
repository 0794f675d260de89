"""Additions to outputs for modules that are idle: their values do not change, so they cross once.

A device with kill and revive trains a few modules at a time. The others keep what they have learned. Their entries go
to the cloud once, when they become idle, and are forgotten when they become active again, or with the session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from taskedge.cooperation.cut.cut_messages import CutRefused
from taskedge.cooperation.cut.module_groups import Module
from taskedge.cooperation.protocol.bounds import short_text
from taskedge.cooperation.protocol.message import Message

Adds = Callable[[Tensor], Tensor]
"""From the input of a linear [..., in] to what is added to its output [..., out]."""
_PREFIX = "parked/"


def read_parked(message: Message, plan: Mapping[str, Module], active: set[str]) -> dict[str, Adds]:
    """Return what the modules that a message parks add, by name.

    Raises:
        CutRefused: A tensor belongs to no idle module, has another shape, or is not finite.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in message.tensors.items():
        if not key.startswith(_PREFIX):
            if key not in ("inputs", "mask"):
                raise CutRefused(f"a {message.kind!r} message with the tensor {short_text(key)}")
            continue
        name, _, part = key.removeprefix(_PREFIX).rpartition("/")
        if name not in plan or name in active:
            raise CutRefused(f"values of {short_text(name)}, which is no idle module")
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise CutRefused(f"values of {name} that are {tensor.dtype} or not finite")
        found.setdefault(name, {})[part] = tensor
    return {name: _adds(plan[name], parts) for name, parts in found.items()}


def _adds(module: Module, parts: Mapping[str, Tensor]) -> Adds:
    out, inputs = module.shape
    shapes = {part: list(tensor.shape) for part, tensor in parts.items()}
    if module.rows is not None and module.columns is not None:
        if shapes == {"block": [len(module.rows), len(module.columns)]}:
            return partial(_add_block, block=parts["block"], module=module)
    elif set(shapes) == {"a", "b"} and len(shapes["a"]) == len(shapes["b"]) == 2:
        rank = shapes["a"][0]
        if shapes == {"a": [rank, inputs], "b": [out, rank]}:
            return partial(_add_product, a=parts["a"], b=parts["b"])
    raise CutRefused(f"values of {module.name} of the shapes {short_text(shapes)}, which are not those of its plan")


def _add_block(x: Tensor, *, block: Tensor, module: Module) -> Tensor:
    assert module.rows is not None
    assert module.columns is not None
    matrix = x.flatten(0, -2)
    product = matrix.index_select(1, module.columns.to(x.device)).float() @ block.to(x.device).t()
    added = product.new_zeros(len(matrix), module.shape[0]).index_add(1, module.rows.to(x.device), product)
    return added.view(*x.shape[:-1], module.shape[0])


def _add_product(x: Tensor, *, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(F.linear(x.float(), a.to(x.device)), b.to(x.device))
