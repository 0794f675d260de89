"""Recomputation: activations of a block are dropped after its forward pass and computed again in the backward pass.

A recomputed block keeps its input. Its gradients, and those of the entries in it, have the same bits as in a run that
keeps everything, since dropout draws the same numbers again. Entries are treated like any other layer: the columns that
they need are gathered again from the recomputed inputs.

Source: Chen et al. (arXiv 1604.06174) for recomputing blocks, Korthikanti et al. (arXiv 2205.05198) for recomputing
what is large and cheap; the engine is ``torch.utils.checkpoint``; this project for the choice at the last block.
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
from taskedge.backbone.label_loss import LabelLossModel, label_count, label_shift_of, loss_bytes
from taskedge.backbone.layers import linears
from taskedge.backbone.linear_cross_entropy import CHUNK_BYTES, chunk_limit
from taskedge.errors import InputError, did_you_mean
from taskedge.forms.sparse import sparse_layers

RECOMPUTE_MODES = ("none", "blocks", "inputs")
"""Nothing; whole blocks; within every block, everything but the outputs of its products (:func:`recomputing`)."""


@contextmanager
def recomputing(model: nn.Module, mode: str = "blocks") -> Iterator[None]:
    """Recompute activations of the model's repeated blocks in backward passes, within the ``with`` block.

    Args:
        model: any module with repeated blocks (:func:`taskedge.backbone.blocks.blocks`).
        mode: ``"blocks"``: every block keeps its input only, and its whole forward pass runs again. ``"inputs"``: it
            also keeps the outputs of its matrix products and fused attention kernels, and computes the rest again:
            inputs of products, norms, dropout, GELU, softmax. More memory than ``"blocks"``, and less time.
            ``"none"`` does nothing.

    The block nearest the output is left out: its backward pass is the first, when nothing else has been recomputed yet,
    so recomputing it would cost time and leave the peak the same. A language model's loss comes before it, and may be
    the peak: in a pass whose logits take more than the temporaries of that block's backward pass, it is recomputed too.

    Forward and backward pass must both be inside. Passes without gradient are not changed. Passes with gradient keep no
    cache of keys and values (``use_cache=False``): it would be filled twice.

    Raises:
        InputError: an unknown mode; a model without repeated blocks, or one that recomputes already.
    """
    if mode not in RECOMPUTE_MODES:
        hint = did_you_mean(mode, RECOMPUTE_MODES)
        raise InputError(f"unknown recompute {mode!r}{hint} (known: {', '.join(RECOMPUTE_MODES)})")
    if mode == "none":
        yield
        return
    every = blocks(model)
    if not every:
        raise InputError(f"{type(model).__name__} has no repeated blocks to recompute: leave recompute at 'none'")
    if any(hasattr(block.module.__dict__.get("forward"), "recomputes") for block in every):
        raise InputError("the model recomputes its blocks already: leave that first")
    modules = [block.module for block in every]
    before = [module.__dict__.get("forward") for module in modules]
    contexts = _selective_contexts if mode == "inputs" else None
    last = _LastBlock(model, modules[-1])
    for module in modules:
        is_needed = last.is_below_loss if module is last.block else _always
        module.__dict__["forward"] = _recomputing_forward(module, contexts, is_needed)
    handles = [
        model.register_forward_pre_hook(_disable_cache, with_kwargs=True),
        model.register_forward_pre_hook(last.begin_pass, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, forward in zip(modules, before, strict=True):
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def _selective_contexts() -> tuple[Any, Any]:
    """Return contexts for ``checkpoint`` that keep the outputs of products and recompute the rest."""
    contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
    return contexts


_PRODUCTS = {"mm", "addmm", "linear", "convolution", "_scaled_mm"}


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operation.__name__.split(".")[0]
    kept = operation.namespace == "aten" and (name in _PRODUCTS or name.startswith("_scaled_dot_product_"))
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


class _LastBlock:
    """Decides for each pass whether the block nearest the output is recomputed.

    If it is not, its activations and then the larger of the logits and the temporaries of its backward pass are there
    at once; if it is, the logits take the place of both.
    """

    def __init__(self, model: nn.Module, block: nn.Module) -> None:
        self.block = block
        self._language_model = next((part for part in model.modules() if isinstance(part, LabelLossModel)), None)
        self._widest = max((linear.shape[0] for linear in linears(block).values()), default=0)
        self._loss_bytes = 0

    def begin_pass(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the labels of a pass of the model."""
        labels, model_of_loss = kwargs.get("labels"), self._language_model
        if model_of_loss is None or labels is None:
            self._loss_bytes = 0
            return
        count = label_count(labels, label_shift_of(model_of_loss))
        with chunk_limit(CHUNK_BYTES):  # a measurement with smaller chunks decides as the run does
            self._loss_bytes = loss_bytes(model_of_loss, count)

    def is_below_loss(self, inputs: tuple[Any, ...]) -> bool:
        """Return whether the logits of this pass take more than the temporaries of the block's backward pass.

        These are taken to be gradients of two of its widest outputs.
        """
        hidden = next((value for value in inputs if isinstance(value, Tensor)), None)
        if hidden is None or not self._loss_bytes:
            return False
        num_tokens = hidden.numel() // max(hidden.shape[-1], 1)
        return self._loss_bytes > 2 * self._widest * num_tokens * hidden.element_size()


def _always(inputs: tuple[Any, ...]) -> bool:
    return True


def _recomputing_forward(
    module: nn.Module, contexts: Callable[[], tuple[Any, Any]] | None, is_needed: Callable[[tuple[Any, ...]], bool]
) -> Callable[..., Any]:
    forward: Callable[..., Any] = module.forward
    options: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        inputs = (*args, *kwargs.values())
        if not (torch.is_grad_enabled() and _needs_gradient(module, inputs) and is_needed(inputs)):
            return forward(*args, **kwargs)
        for layer in sparse_layers(module).values():
            layer.sync_weight()  # now: both passes must run the very same operations
        return checkpoint(forward, *args, use_reentrant=False, **options, **kwargs)

    recomputed.recomputes = True  # type: ignore[attr-defined]
    return recomputed


def _needs_gradient(module: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Return whether a backward pass would enter the module; below the deepest trained entry none does."""
    if any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
        return True
    return any(parameter.requires_grad for parameter in module.parameters())


def _disable_cache(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not torch.is_grad_enabled() or "use_cache" not in inspect.signature(model.forward).parameters:
        return None
    return args, kwargs | {"use_cache": False}
