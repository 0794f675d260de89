"""What a device's answer must be before it may touch the model. Refused answers are counted, and change nothing."""

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
from taskedge.cooperation.protocol.quantization import layout

NOT_FINITE = "not finite"
"""The one reason that is as likely the run's fault (a learning rate too high) as the device's."""
NORMS_KEPT = 64
"""Accepted norms per block that the median is of."""
NORMS_NEEDED = 5
"""Below so many there is no median to compare with."""


@dataclass(frozen=True)
class Expected:
    """What an answer must look like."""

    kind: str
    run: str
    round: int
    version: int
    shapes: Mapping[str, torch.Size]
    """Of the names in the blocks that were assigned."""
    most_tokens: int
    """What the rows that it was given to train on can hold."""
    upload: str = "float32"
    """What its tensors are sent as."""


@dataclass(frozen=True)
class Accepted:
    """An answer that passed: from :func:`checked` with its tensors as they were sent, from an exchange decoded."""

    tensors: dict[str, Tensor]
    tokens: int
    loss: float
    seconds: float
    real_seconds: float | None = None
    """What training really took, where the device emulates a slower one."""


class Refused(Exception):
    """Not an error of ours: the message is the reason, which the log shows and counts."""


class Norms:
    """The norms of accepted answers per block, and whether another is absurd beside them."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._seen: dict[int, deque[float]] = {}

    def check(self, norms: Mapping[int, float]) -> None:
        """Raises Refused where a block's norm is more than ``factor`` times its running median."""
        for block, norm in norms.items():
            seen = self._seen.get(block, ())
            median = statistics.median(seen) if len(seen) >= NORMS_NEEDED else 0.0
            if median > 0 and norm > self._factor * median:
                raise Refused(f"absurd norm: {norm:.3g} in block {block}, where {median:.3g} is the median")

    def add(self, norms: Mapping[int, float]) -> None:
        """Takes the norms of an accepted answer in."""
        for block, norm in norms.items():
            self._seen.setdefault(block, deque(maxlen=NORMS_KEPT)).append(norm)

    def state(self) -> dict[str, list[float]]:
        """JSON-able."""
        return {str(block): list(seen) for block, seen in self._seen.items()}

    def load(self, state: Mapping[str, list[float]]) -> None:
        """Takes up what :meth:`state` gave."""
        self._seen = {int(block): deque(seen, maxlen=NORMS_KEPT) for block, seen in state.items()}


def checked(answer: Message, expected: Expected) -> Accepted:
    """The answer's content, if it is what was asked for. Cheap tests come first; no value is used before all passed.

    Raises:
        Refused: with the reason.
    """
    facts, tensors = answer.facts, answer.tensors
    if answer.kind != expected.kind:
        why = facts.get("why") if answer.kind == "error" else None
        raise Refused(f"kind {answer.kind!r} instead of {expected.kind!r}" + (f": {why}" if why else ""))
    for key in ("run", "round", "version"):
        if facts.get(key) != getattr(expected, key):
            raise Refused(f"stale {key}: {_short(facts.get(key))} instead of {getattr(expected, key)!r}")
    asked = layout(expected.upload, expected.shapes)
    most = sum(dtype.itemsize * shape.numel() for dtype, shape in asked.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    foreign = sorted(tensors.keys() - asked.keys())
    if foreign:
        raise Refused(f"not assigned: {_short(foreign[0])} and {len(foreign) - 1} others")
    missing = sorted(asked.keys() - tensors.keys())
    if missing:
        raise Refused(f"missing: {missing[0]!r} and {len(missing) - 1} others")
    if size > most:
        raise Refused(f"oversize: {size:,} bytes of values, where {most:,} were asked for")
    for name, tensor in tensors.items():
        dtype, shape = asked[name]
        if tensor.dtype != dtype:
            raise Refused(f"wrong dtype: {name!r} is {tensor.dtype}")
        if tensor.shape != shape:
            raise Refused(f"wrong shape: {name!r} is {list(tensor.shape)}, not {list(shape)}")
    tokens, loss, seconds = facts.get("tokens"), facts.get("loss"), facts.get("seconds")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 < tokens <= expected.most_tokens:
        raise Refused(f"wrong tokens: {_short(tokens)}, where at most {expected.most_tokens} can be")
    if not _number(seconds) or seconds < 0:
        raise Refused(f"wrong seconds: {_short(seconds)}")
    real = facts.get("real_seconds")
    if real is not None and not _number(real):
        raise Refused(f"wrong real seconds: {_short(real)}")
    if not _number(loss):
        raise Refused(f"{NOT_FINITE}: the loss")
    check_finite(tensors)
    return Accepted(dict(tensors), tokens, float(loss), float(seconds), None if real is None else float(real))


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises Refused where some number is not."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise Refused(f"{NOT_FINITE}: {name!r}")


def block_norms(change: Mapping[str, Tensor], block_of: Mapping[str, int]) -> dict[int, float]:
    """The l2 norm of a change per block."""
    squares: dict[int, float] = {}
    for name, tensor in change.items():
        block = block_of[name]
        squares[block] = squares.get(block, 0.0) + float(tensor.double().square().sum())
    return {block: math.sqrt(square) for block, square in squares.items()}


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
