"""Cross-entropy of a linear head over a vocabulary, a few tokens at a time.

The logits of all tokens never exist at once. The forward pass of a frozen head computes the gradient of its input as
well, chunk by chunk, so that the backward pass needs no logits.

Source: the fused loss of arXiv 2410.10989 (Liger), here with a soft cap and a scale of the logits; for heads without
them, torch's own ``linear_cross_entropy`` where it exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 2**26
"""Bytes of the logits of one chunk. Fewer tokens at once are slower: each chunk reads the whole weight."""

_chunk_bytes: ContextVar[int] = ContextVar("chunk_bytes", default=CHUNK_BYTES)


@dataclass(frozen=True)
class LogitMap:
    """Logits of the outputs z of a model's head: ``cap·tanh(scale·z/cap)``, or ``scale·z`` without a cap."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the model's logits of the head's outputs, as a new tensor or the same one if nothing changes."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@contextmanager
def chunk_limit(num_bytes: int) -> Iterator[None]:
    """Limit the logits of one chunk to ``num_bytes`` inside the block; a chunk has at least one token."""
    token = _chunk_bytes.set(num_bytes)
    try:
        yield
    finally:
        _chunk_bytes.reset(token)


def chunk_tokens(vocabulary: int) -> int:
    """Return the tokens of one chunk of a head with ``vocabulary`` outputs."""
    return max(1, _chunk_bytes.get() // (4 * vocabulary))


def head_bytes(vocabulary: int, num_tokens: int, buffers: int = 1) -> int:
    """Return the bytes that the loss of ``num_tokens`` labeled tokens takes beside its inputs and their gradient.

    Args:
        vocabulary: outputs of the head.
        num_tokens: labeled tokens.
        buffers: of the size of a chunk's logits: 1 for a frozen fp32 head; 2 with a cap, whose slope is kept, or in
            half precision; 3 for a head that trains.
    """
    return buffers * 4 * vocabulary * min(num_tokens, chunk_tokens(vocabulary))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_map: LogitMap = LogitMap(),
) -> Tensor:
    """Return the sum of the cross-entropies of a frozen head, a float32 scalar (float64 for a float64 head).

    Args:
        hidden: inputs of the head [tokens, in]; only they get a gradient.
        weight: of the head, [vocabulary, in].
        bias: of the head, [vocabulary], if it has one.
        targets: int64 [tokens].
        logit_map: what follows the head.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        several = len(targets) > chunk_tokens(len(weight))  # of one chunk, torch keeps the logits and their gradient
        if hidden.dtype == torch.float32 == weight.dtype and logit_map.cap is None and several and has_fused():
            if logit_map.scale != 1.0:
                hidden = hidden * logit_map.scale
                bias = None if bias is None else bias * logit_map.scale
            return _fused(hidden, weight, bias, targets)
        total: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, logit_map)  # type: ignore[no-untyped-call]
        return total


def module_cross_entropy(
    head: Callable[[Tensor], Tensor], vocabulary: int, hidden: Tensor, targets: Tensor, logit_map: LogitMap
) -> Tensor:
    """Return the sum of the cross-entropies of any head, such as one that trains, a float32 scalar.

    Each chunk is computed again in the backward pass, so that its logits are not kept.

    Args:
        head: gives outputs [tokens, vocabulary] of inputs [tokens, in].
        vocabulary: number of outputs.
        hidden: [tokens, in].
        targets: int64 [tokens].
        logit_map: what follows the head.
    """

    def chunk_loss(x: Tensor, labels: Tensor) -> Tensor:
        logits = logit_map(head(x))
        return F.cross_entropy(logits.to(_wide(logits.dtype)), labels, reduction="sum")

    total = hidden.new_zeros((), dtype=_wide(hidden.dtype))
    step = chunk_tokens(vocabulary)
    for start in range(0, max(len(targets), 1), step):
        x, labels = hidden[start : start + step], targets[start : start + step]
        if torch.is_grad_enabled():
            total = total + checkpoint(chunk_loss, x, labels, use_reentrant=False)
        else:
            total = total + chunk_loss(x, labels)
    return total


def has_fused() -> bool:
    """Return whether torch has a chunked ``linear_cross_entropy`` (2.13)."""
    return hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions")


def _fused(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Call torch's function with our chunk.

    Its own choice of a chunk made the loss of 256 tokens and 65,536 words 6 times as slow on a CPU (torch 2.13).
    """
    options = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=min(len(targets), chunk_tokens(len(weight))), chunking_method=None
    )
    total: Tensor = F.linear_cross_entropy(
        hidden, weight.detach(), targets, linear_bias=None if bias is None else bias.detach(), reduction="sum",
        options=options,
    )  # fmt: skip
    return total


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The sum of cross-entropies, with the gradient of the head's input computed in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logit_map: LogitMap
    ) -> Tensor:
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total = hidden.new_zeros((), dtype=_wide(hidden.dtype))
        step = chunk_tokens(len(weight))
        for start in range(0, len(targets), step):
            labels = targets[start : start + step, None]
            logits = F.linear(hidden[start : start + step], weight, bias)
            logits = logits.to(_wide(logits.dtype))  # [chunk, vocabulary]
            if logit_map.scale != 1.0:
                logits.mul_(logit_map.scale)
            slope = None
            if logit_map.cap is not None:
                logits.div_(logit_map.cap).tanh_()
                slope = logits.square().neg_().add_(1.0) if gradient is not None else None
                logits.mul_(logit_map.cap)
            of_labels, largest = logits.gather(1, labels), logits.amax(1, keepdim=True)
            norm = logits.sub_(largest).exp_().sum(1, keepdim=True)
            total += (norm.log() + largest - of_labels).sum()
            if gradient is not None:
                logits.div_(norm)
                logits.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=logits.dtype))
                if slope is not None:
                    logits.mul_(slope)
                if logit_map.scale != 1.0:
                    logits.mul_(logit_map.scale)
                gradient[start : start + step] = logits.to(weight.dtype) @ weight
            del logits, slope  # or they would stay while the next chunk is computed
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else gradient * grad_total.to(gradient.dtype), None, None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of logits in which the loss is computed: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
