"""Which linears of a model may carry entries, and which parameters are its task head."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from taskedge.backbone.blocks import blocks, blocks_within
from taskedge.backbone.experts import ExpertLinear
from taskedge.backbone.layers import Linear, linears
from taskedge.errors import InputError, did_you_mean

HEAD_NAMES = ("head", "classifier", "score", "fc", "heads", "qa_outputs")


def candidates(model: nn.Module, only: Sequence[str] | None = None) -> dict[str, Linear]:
    """Return the linears that may carry entries, by name, in the order of the model's modules.

    By default these are the linears and convolutions inside the model's repeated blocks; in a model without blocks, all
    linears but the head. ``only`` names layers (or glob patterns such as ``"*.attention.*"``) instead, and is the only
    way to embeddings and to convolutions outside blocks. Layers whose weight is tied to another module (an entry would
    silently change that one too) and others that cannot carry entries (:func:`unusable_linears`) are always left out.

    Raises:
        InputError: the model has no linears, or a name in ``only`` matches no usable one.
    """
    every = linears(model)
    if not every:
        raise InputError(f"{type(model).__name__} has no linear layers, so there is nothing to select from")
    unusable = unusable_linears(model, every)
    if only is not None:
        return {name: every[name] for name in _matching(only, every, unusable)}
    names = default_candidates(model, every, unusable)
    if not names:
        raise _no_candidate(model, every, unusable)
    return {name: every[name] for name in names}


def candidates_within(model: nn.Module, depth: int, only: Sequence[str] | None = None) -> dict[str, Linear]:
    """Return the :func:`candidates` in the ``depth`` blocks nearest the output.

    Raises:
        InputError: see :func:`candidates`; the model has fewer blocks; none of the linears is in these.
    """
    inside = tuple(f"{block.name}." for block in blocks_within(model, depth))
    result = {name: linear for name, linear in candidates(model, only).items() if name.startswith(inside)}
    if not result:
        raise InputError(f"no linear at depth {depth} or nearer the output can carry entries: give a larger one")
    return result


def unusable_linears(model: nn.Module, every: dict[str, Linear]) -> dict[str, str]:
    """Return the linears in ``every`` that cannot carry entries, with the reason."""
    owners = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    unusable = {}
    for name, linear in every.items():
        module = linear.module
        weight = module.stack if isinstance(module, ExpertLinear) else module._parameters.get("weight")
        if weight is None:
            unusable[name] = "its weight is computed, not stored (quantized or parametrized)"
        elif owners[id(weight)] > 1:
            unusable[name] = "its weight is tied to another module"
        elif not (weight.is_floating_point() or linear.is_read_only):
            unusable[name] = f"its weight is {weight.dtype}, not floating point"
        elif isinstance(module, ExpertLinear):
            if (reason := module.unsupported_reason()) is not None:
                unusable[name] = reason
        elif isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            unusable[name] = "nn.MultiheadAttention reads its weight without calling it"
        elif (reason := linear.adapter.unsupported_reason(linear.module)) is not None:
            unusable[name] = reason
        elif not linear.is_read_only and _returns_more(module):
            unusable[name] = f"{type(module).__name__} returns more than its product"
    return unusable


def _returns_more(module: nn.Module) -> bool:
    """Return whether a linear of a class with a forward pass of its own returns no tensor, such as Llama 4's router.

    It is run on one token without memory for weights.
    """
    own = vars(type(module))
    if not isinstance(module, nn.Linear) or "forward" not in own or own.get("keeps_forward"):
        return False
    weights = {name: parameter.detach().to("meta") for name, parameter in module.named_parameters()}
    token = torch.empty(1, module.in_features, device="meta", dtype=module.weight.dtype)
    try:
        with torch.no_grad():
            return not isinstance(torch.func.functional_call(module, weights, (token,)), torch.Tensor)
    except Exception:  # it needs other arguments, or real weights: whether it fits shows when it runs
        return False


def head_parameters(model: nn.Module) -> list[str]:
    """Return the names of the parameters of the model's task head, which is trained in full.

    For a Hugging Face model: the parameters outside its ``base_model``, unless they are a language-model head (which
    is pretrained). For any other module: a top-level child with a customary name (``head``, ``classifier``, ``fc``,
    ...), else the last linear outside the repeated blocks, provided that there is more than one linear.
    """
    base_prefix = getattr(model, "base_model_prefix", "")
    if base_prefix:
        get_outputs = getattr(model, "get_output_embeddings", None)
        if (callable(get_outputs) and get_outputs() is not None) or not hasattr(model, base_prefix):
            return []
        return [name for name, _ in model.named_parameters() if not name.startswith(f"{base_prefix}.")]
    for name in HEAD_NAMES:
        child = getattr(model, name, None)
        if isinstance(child, nn.Module) and any(True for _ in child.parameters()):
            return [f"{name}.{parameter}" for parameter, _ in child.named_parameters()]
    inside = tuple(f"{block.name}." for block in blocks(model))
    plain = [name for name, linear in linears(model).items() if linear.adapter.default_scope == "everywhere"]
    outside = [name for name in plain if not (inside and name.startswith(inside))]
    if not outside or len(plain) < 2:
        return []
    return [f"{outside[-1]}.{parameter}" for parameter, _ in model.get_submodule(outside[-1]).named_parameters()]


def default_candidates(model: nn.Module, every: dict[str, Linear], unusable: dict[str, str]) -> list[str]:
    """Return the names of the linears that may carry entries if none are named, in the order of the model's modules.

    Args:
        model: the model.
        every: all its linears.
        unusable: the result of :func:`unusable_linears`.
    """
    inside = tuple(f"{block.name}." for block in blocks(model))
    if inside:
        in_scope = [
            name
            for name, linear in every.items()
            if name.startswith(inside) and linear.adapter.default_scope != "on request"
        ]
    else:
        head = set(head_parameters(model))
        in_scope = [
            name
            for name, linear in every.items()
            if f"{name}.weight" not in head and linear.adapter.default_scope == "everywhere"
        ]
    return [name for name in in_scope if name not in unusable]


def _no_candidate(model: nn.Module, every: dict[str, Linear], unusable: dict[str, str]) -> InputError:
    reasons = [f"{name}: {reason}" for name, reason in unusable.items()]
    reasons += [
        f"{name}: takes part {linear.adapter.default_scope} only, which only the Python library offers"
        if linear.adapter.default_scope == "on request"
        else f"{name}: takes part {linear.adapter.default_scope} only, and lies outside them"
        for name, linear in every.items()
        if name not in unusable and linear.adapter.default_scope != "everywhere"
    ]
    why = "; ".join(reasons) or "its only linears are the head"
    return InputError(f"no linear of {type(model).__name__} can carry entries ({why})")


def _matching(patterns: Sequence[str], every: dict[str, Linear], unusable: dict[str, str]) -> list[str]:
    chosen: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(every, pattern)
        if not matches:
            raise InputError(f"no linear is named {pattern!r}{did_you_mean(pattern, every)}")
        usable = [name for name in matches if name not in unusable]
        if not usable:
            raise InputError(f"linear {matches[0]!r} cannot carry entries: {unusable[matches[0]]}")
        chosen.update(usable)
    return [name for name in every if name in chosen]
