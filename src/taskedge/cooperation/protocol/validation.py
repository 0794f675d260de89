"""Validate a device's answer before it may touch the model. Refused answers are counted and change nothing."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from taskedge.cooperation.protocol.bounds import (
    MAX_LOSS,
    MAX_SECONDS,
    bounded_count,
    bounded_number,
    short_reason,
    short_text,
)
from taskedge.cooperation.protocol.flat_tensors import FlatLayout, are_finite, flatten, layout_of
from taskedge.cooperation.protocol.message import Message, MessageLimits
from taskedge.cooperation.protocol.quantization import answer_layout

NOT_FINITE = "not finite"
"""The only reason that is as likely the run's fault (a learning rate too high) as the device's."""
NORMS_KEPT = 64
"""Accepted norms per block that the median is taken over."""
MAX_CHANGE = 10.0
"""Largest change of a block's values in one round, as a multiple of their own size (:func:`block_sizes`)."""
MAX_GRADIENT = 1e4
"""Largest gradient of a block, as a multiple of the size of its values."""
MIN_VALUE = 0.1
"""Size of a value below which its block is measured as if all were of this size: biases begin at 0."""
_HEADER_BYTES = 2**16
_TENSOR_HEADER_BYTES = 256
_SPARE_TENSORS = 16
"""So that an answer with a few tensors too many is refused by name."""


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

    @cached_property
    def layout(self) -> dict[str, tuple[torch.dtype, torch.Size]]:
        """Dtype and shape of every tensor."""
        return answer_layout(self.upload, self.shapes)

    @cached_property
    def limits(self) -> MessageLimits:
        """The largest message that can be such an answer."""
        layout = self.layout
        values = sum(dtype.itemsize * shape.numel() for dtype, shape in layout.values())
        names = sum(2 * len(name) + _TENSOR_HEADER_BYTES for name in layout)
        return MessageLimits(values + names + _HEADER_BYTES, len(layout) + _SPARE_TENSORS)


@dataclass(frozen=True)
class AcceptedAnswer:
    """An answer that passed. Its tensors are as sent from :func:`check_answer`, dequantized from a dispatch."""

    tensors: Mapping[str, Tensor]
    tokens: int
    loss: float
    seconds: float
    real_seconds: float | None = None
    """Real seconds of training, if the device emulates a slower one."""
    device: str = ""
    """Whose it is; empty from :func:`check_answer`."""
    rows: int = 0
    """Rows of its task; 0: not known."""
    norms: Mapping[int, float] = field(default_factory=dict)
    """l2 norm of its update per block; empty from :func:`check_answer`."""


class AnswerRefused(Exception):
    """An answer that may not be used. The message is the reason, which the log shows and counts."""


class NormTracker:
    """Norms of accepted answers per block, which an answer that few others can be compared with is measured by."""

    def __init__(self) -> None:
        self._norms: dict[int, deque[float]] = {}

    def medians(self) -> dict[int, float]:
        """Return the running median of each block, of an even number of norms the lower one."""
        return {block: statistics.median_low(norms) for block, norms in self._norms.items()}

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
    accepted = check_form(answer, expected)
    check_finite(answer.tensors)
    return accepted


def check_form(answer: Message, expected: ExpectedAnswer) -> AcceptedAnswer:
    """Return the answer's content if all but its values is as expected.

    Raises:
        AnswerRefused: It is not. The message is the reason.
    """
    header = answer.header
    if answer.kind != expected.kind:
        why = header.get("why") if answer.kind == "error" else None
        raise AnswerRefused(
            f"kind {short_text(answer.kind)} instead of {expected.kind!r}" + (f": {short_reason(why)}" if why else "")
        )
    for key in ("run", "round", "version"):
        if not _is_same(header.get(key), getattr(expected, key)):
            raise AnswerRefused(f"stale {key}: {short_text(header.get(key))} instead of {getattr(expected, key)!r}")
    _check_layout(answer.tensors, expected.layout)
    tokens = bounded_count(header.get("tokens"), 1, expected.max_tokens)
    if tokens is None:
        raise AnswerRefused(
            f"wrong tokens: {short_text(header.get('tokens'))}, where at most {expected.max_tokens} can be"
        )
    seconds = bounded_number(header.get("seconds"), 0.0, MAX_SECONDS)
    if not seconds:  # training takes time, and the costs of the next plan are multiples of it
        raise AnswerRefused(
            f"wrong seconds: {short_text(header.get('seconds'))}, not above 0 and up to {MAX_SECONDS:g}"
        )
    stated = header.get("real_seconds")
    real_seconds = None if stated is None else bounded_number(stated, 0.0, MAX_SECONDS)
    if stated is not None and real_seconds is None:
        raise AnswerRefused(f"wrong real seconds: {short_text(stated)}")
    loss = bounded_number(header.get("loss"), -MAX_LOSS, MAX_LOSS)
    if loss is None:
        raise AnswerRefused(f"{NOT_FINITE}: the loss, or beyond {MAX_LOSS:g}")
    return AcceptedAnswer(
        tensors=dict(answer.tensors),
        tokens=tokens,
        loss=loss,
        seconds=seconds,
        real_seconds=real_seconds,
    )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise :class:`AnswerRefused` if some number is not finite."""
    if not are_finite(tensors.values()):
        name = next(name for name, tensor in tensors.items() if not are_finite([tensor]))
        raise AnswerRefused(f"{NOT_FINITE}: {short_text(name)}")


def block_norms(change: Mapping[str, Tensor], block_of: Mapping[str, int]) -> dict[int, float]:
    """Return the l2 norm of a change, per block."""
    return flat_block_norms(layout_of(change), flatten(change.values()), block_of)


def flat_block_norms(layout: FlatLayout, change: Tensor, block_of: Mapping[str, int]) -> dict[int, float]:
    """Return the l2 norm of a change, per block; ``change`` is flat, in the order of the layout."""
    squares: dict[int, float] = {}
    for name, square in zip(layout.names, layout.sums(change.double().square()), strict=True):
        block = block_of[name]
        squares[block] = squares.get(block, 0.0) + square
    return {block: math.sqrt(square) for block, square in squares.items()}


def block_sizes(values: Mapping[str, Tensor], block_of: Mapping[str, int]) -> dict[int, float]:
    """Return the size of the coordinator's own values per block: their l2 norm, each at least ``MIN_VALUE``."""
    floored = {name: value.double().abs().clamp_min(MIN_VALUE) for name, value in values.items()}
    return block_norms(floored, block_of)


def check_update_size(norms: Mapping[int, float], sizes: Mapping[int, float], factor: float) -> None:
    """Refuse an update that is unbounded beside the values that it would change, from the first answer on.

    Args:
        norms: l2 norm of the update per block.
        sizes: Size of the coordinator's values of the same names, per block (:func:`block_sizes`).
        factor: Most that a norm may be of the size.

    Raises:
        AnswerRefused: The norm of some block is larger.
    """
    for block, norm in norms.items():
        if not norm <= factor * sizes[block]:
            raise AnswerRefused(
                f"absurd size: a norm of {norm:.3g} in block {block}, whose values have one of {sizes[block]:.3g}: "
                f"{factor:g} times that is the most"
            )


def _check_layout(tensors: Mapping[str, Tensor], layout: Mapping[str, tuple[torch.dtype, torch.Size]]) -> None:
    """Raise :class:`AnswerRefused` if names, bytes, dtypes or shapes are not those of the layout."""
    foreign = sorted(tensors.keys() - layout.keys())
    if foreign:
        raise AnswerRefused(f"not assigned: {short_text(foreign[0])} and {len(foreign) - 1} others")
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


def _is_same(stated: object, expected: object) -> bool:
    """Return whether a field has the expected value and type: ``1.0`` and ``True`` are not the round 1."""
    return type(stated) is type(expected) and stated == expected
