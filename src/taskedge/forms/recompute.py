"""Recomputation: what a block computed is forgotten after its forward pass, and computed again on the way back.

A block that is recomputed keeps its input; its gradients, and those of the entries in it, have the bits of a run that
keeps everything, since dropout draws the same numbers again. Entries take part like any other layer: the columns that
they need are gathered anew from the recomputed inputs.

Source: Chen et al. (arXiv 1604.06174) for recomputing blocks, Korthikanti et al. (arXiv 2205.05198) for recomputing
what is large and cheap; the engine is ``torch.utils.checkpoint``. Leaving out the last block is ours.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from taskedge.backbone.blocks import blocks
from taskedge.errors import InputError, did_you_mean
from taskedge.forms.sparse import sparse_layers

WAYS = ("none", "blocks", "inputs")
"""Nothing; whole blocks; in every block what lies between its products (:func:`recomputing`)."""


@contextmanager
def recomputing(model: nn.Module, how: str = "blocks") -> Iterator[None]:
    """Inside, backward passes through the model's repeated blocks recompute what they need.

    Args:
        model: any module with repeated blocks (:func:`taskedge.backbone.blocks.blocks`).
        how: ``"blocks"``: every block keeps its input only, and its whole forward pass is run again. ``"inputs"``: it
            also keeps what its matrix products and fused attention kernels put out, and computes the rest again:
            inputs of products, norms, dropout, GELU, softmax. More memory than ``"blocks"``, and less time.
            ``"none"`` does nothing.

    The block nearest the output is left out: its backward pass is the first, when nothing else has been recomputed yet,
    so to recompute it would cost time and leave the peak where it is.

    Forward and backward pass must both be inside. Passes without gradient are as they were. A cache of keys and values
    is not kept in passes with gradient (``use_cache=False``): it would be filled twice.

    Raises:
        InputError: an unknown way; a model without repeated blocks, or one in which this is at work already.
    """
    if how not in WAYS:
        raise InputError(f"unknown recompute {how!r}{did_you_mean(how, WAYS)} (known: {', '.join(WAYS)})")
    if how == "none":
        yield
        return
    found = blocks(model)
    if not found:
        raise InputError(f"{type(model).__name__} has no repeated blocks to recompute: leave recompute at 'none'")
    if any(hasattr(block.module.__dict__.get("forward"), "recomputes") for block in found):
        raise InputError("the model recomputes its blocks already: leave that first")
    chosen = [block.module for block in found if block.depth > 1]
    before = [module.__dict__.get("forward") for module in chosen]
    for module in chosen:
        module.__dict__["forward"] = _recomputed(module, selective if how == "inputs" else None)
    handle = model.register_forward_pre_hook(_without_cache, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        for module, forward in zip(chosen, before, strict=True):
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def selective() -> tuple[Any, Any]:
    """For ``checkpoint``: keep what products put out, recompute the rest."""
    contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
    return contexts


_PRODUCTS = {"mm", "addmm", "linear", "convolution", "_scaled_mm"}


def _policy(context: Any, operation: Any, *given: Any, **named: Any) -> CheckpointPolicy:
    name = operation.__name__.split(".")[0]
    kept = operation.namespace == "aten" and (name in _PRODUCTS or name.startswith("_scaled_dot_product_"))
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _recomputed(module: nn.Module, contexts: Callable[[], tuple[Any, Any]] | None) -> Callable[..., Any]:
    forward: Callable[..., Any] = module.forward
    options: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}

    @functools.wraps(forward)
    def recomputed(*given: Any, **named: Any) -> Any:
        if not (torch.is_grad_enabled() and _needs_gradient(module, (*given, *named.values()))):
            return forward(*given, **named)
        for layer in sparse_layers(module).values():
            layer.update()  # now: both passes must do the very same operations
        return checkpoint(forward, *given, use_reentrant=False, **options, **named)

    recomputed.recomputes = True  # type: ignore[attr-defined]
    return recomputed


def _needs_gradient(module: nn.Module, given: tuple[Any, ...]) -> bool:
    """Whether a backward pass would enter the module; below the deepest trained entry none does."""
    if any(isinstance(value, Tensor) and value.requires_grad for value in given):
        return True
    return any(parameter.requires_grad for parameter in module.parameters())


def _without_cache(model: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if not torch.is_grad_enabled() or "use_cache" not in inspect.signature(model.forward).parameters:
        return None
    return given, named | {"use_cache": False}
