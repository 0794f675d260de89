"""Validate a device's answer before it may touch the model. Refused answers are counted and change nothing."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.quantization import answer_layout

NOT_FINITE = "not finite"
"""The only reason that is as likely the run's fault (a learning rate too high) as the device's."""
NORMS_KEPT = 64
"""Accepted norms per block that the median is taken over."""
NORMS_NEEDED = 5
"""Accepted norms of a block below which there is no median to compare with."""


@dataclass(frozen=True)
class ExpectedAnswer:
    """The form that an answer must have."""

    kind: str
    run: str
    round: int
    version: int
    shapes: Mapping[str, torch.Size]
    """Shapes of the trained names in the assigned blocks."""
    max_tokens: int
    """Most tokens that the rows of the task can hold."""
    upload: str = "float32"
    """Dtype that its tensors are sent in: a key of ``UPLOAD_DTYPES``."""


@dataclass(frozen=True)
class AcceptedAnswer:
    """An answer that passed. Its tensors are as sent from :func:`check_answer`, dequantized from a dispatch."""

    tensors: dict[str, Tensor]
    tokens: int
    loss: float
    seconds: float
    real_seconds: float | None = None
    """Real seconds of training, if the device emulates a slower one."""


class AnswerRefused(Exception):
    """An answer that may not be used. The message is the reason, which the log shows and counts."""


class NormTracker:
    """Norms of accepted answers per block, to refuse answers with an absurd one.

    Args:
        factor: A norm is absurd above ``factor`` times the block's running median.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._norms: dict[int, deque[float]] = {}

    def check(self, norms: Mapping[int, float]) -> None:
        """Raise :class:`AnswerRefused` if the norm of some block is absurd."""
        for block, norm in norms.items():
            accepted = self._norms.get(block, ())
            median = statistics.median(accepted) if len(accepted) >= NORMS_NEEDED else 0.0
            if median > 0 and norm > self._factor * median:
                raise AnswerRefused(f"absurd norm: {norm:.3g} in block {block}, where {median:.3g} is the median")

    def add(self, norms: Mapping[int, float]) -> None:
        """Add the norms of an accepted answer."""
        for block, norm in norms.items():
            self._norms.setdefault(block, deque(maxlen=NORMS_KEPT)).append(norm)

    def state_dict(self) -> dict[str, list[float]]:
        """Return the norms by block, JSON-able."""
        return {str(block): list(norms) for block, norms in self._norms.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._norms = {int(block): deque(norms, maxlen=NORMS_KEPT) for block, norms in state.items()}


def check_answer(answer: Message, expected: ExpectedAnswer) -> AcceptedAnswer:
    """Return the answer's content if it is as expected. Cheap checks come first; values are read only after them.

    Raises:
        AnswerRefused: It is not. The message is the reason.
    """
    header = answer.header
    if answer.kind != expected.kind:
        why = header.get("why") if answer.kind == "error" else None
        raise AnswerRefused(f"kind {answer.kind!r} instead of {expected.kind!r}" + (f": {why}" if why else ""))
    for key in ("run", "round", "version"):
        if header.get(key) != getattr(expected, key):
            raise AnswerRefused(f"stale {key}: {_short(header.get(key))} instead of {getattr(expected, key)!r}")
    _check_layout(answer.tensors, answer_layout(expected.upload, expected.shapes))
    tokens, loss, seconds = header.get("tokens"), header.get("loss"), header.get("seconds")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 < tokens <= expected.max_tokens:
        raise AnswerRefused(f"wrong tokens: {_short(tokens)}, where at most {expected.max_tokens} can be")
    if not _is_finite_number(seconds) or seconds < 0:
        raise AnswerRefused(f"wrong seconds: {_short(seconds)}")
    real_seconds = header.get("real_seconds")
    if real_seconds is not None and not _is_finite_number(real_seconds):
        raise AnswerRefused(f"wrong real seconds: {_short(real_seconds)}")
    if not _is_finite_number(loss):
        raise AnswerRefused(f"{NOT_FINITE}: the loss")
    check_finite(answer.tensors)
    return AcceptedAnswer(
        tensors=dict(answer.tensors),
        tokens=tokens,
        loss=float(loss),
        seconds=float(seconds),
        real_seconds=None if real_seconds is None else float(real_seconds),
    )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise :class:`AnswerRefused` if some number is not finite."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise AnswerRefused(f"{NOT_FINITE}: {name!r}")


def block_norms(change: Mapping[str, Tensor], block_of: Mapping[str, int]) -> dict[int, float]:
    """Return the l2 norm of a change, per block."""
    squares: dict[int, float] = {}
    for name, tensor in change.items():
        block = block_of[name]
        squares[block] = squares.get(block, 0.0) + float(tensor.double().square().sum())
    return {block: math.sqrt(square) for block, square in squares.items()}


def _check_layout(tensors: Mapping[str, Tensor], layout: Mapping[str, tuple[torch.dtype, torch.Size]]) -> None:
    """Raise :class:`AnswerRefused` if names, bytes, dtypes or shapes are not those of the layout."""
    foreign = sorted(tensors.keys() - layout.keys())
    if foreign:
        raise AnswerRefused(f"not assigned: {_short(foreign[0])} and {len(foreign) - 1} others")
    missing = sorted(layout.keys() - tensors.keys())
    if missing:
        raise AnswerRefused(f"missing: {missing[0]!r} and {len(missing) - 1} others")
    max_bytes = sum(dtype.itemsize * shape.numel() for dtype, shape in layout.values())
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if num_bytes > max_bytes:
        raise AnswerRefused(f"oversize: {num_bytes:,} bytes of values instead of {max_bytes:,}")
    for name, tensor in tensors.items():
        dtype, shape = layout[name]
        if tensor.dtype != dtype:
            raise AnswerRefused(f"wrong dtype: {name!r} is {tensor.dtype}")
        if tensor.shape != shape:
            raise AnswerRefused(f"wrong shape: {name!r} is {list(tensor.shape)}, not {list(shape)}")


def _is_finite_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
