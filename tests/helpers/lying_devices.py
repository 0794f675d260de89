"""Answers that may not be used, by the reason for which they are refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from taskedge.cooperation.protocol.message import MAGIC, Message


def altered(answer: Message, tensors: Mapping[str, Tensor] | None = None, **fields: Any) -> Message:
    """The answer with other tensors, or other fields of the header."""
    return Message(answer.kind, {**answer.header, **fields}, answer.tensors if tensors is None else tensors)


def with_first(answer: Message, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The tensors with the first one changed."""
    name = min(answer.tensors)
    return {**answer.tensors, name: change(answer.tensors[name])}


class Garbage(Message):
    """Bytes that are no message."""

    def __init__(self) -> None:
        super().__init__("gradients")

    def pack(self) -> bytes:
        return MAGIC + b"\xff\xff\xff\xff and no header"


LIES: dict[str, Callable[[Message], Message]] = {
    "not finite": lambda a: altered(a, with_first(a, lambda t: t * torch.nan)),
    "not finite: the loss": lambda a: altered(a, loss=None),
    "not assigned": lambda a: altered(a, {**a.tensors, "bert.embeddings.word_embeddings.weight": torch.ones(2)}),
    "missing": lambda a: altered(a, {name: t for name, t in a.tensors.items() if name != min(a.tensors)}),
    "wrong shape": lambda a: altered(a, with_first(a, lambda t: t[:-1])),
    "wrong dtype": lambda a: altered(a, with_first(a, lambda t: t.to(torch.bfloat16))),
    "stale version": lambda a: altered(a, version=a.header["version"] - 1),
    "stale round": lambda a: altered(a, round=a.header["round"] - 1),
    "stale run": lambda a: altered(a, run="another"),
    "oversize": lambda a: altered(a, with_first(a, lambda t: torch.zeros(10**6))),
    "wrong tokens": lambda a: altered(a, tokens=10**12),
    "kind 'values'": lambda a: Message("values", a.header, a.tensors),
}
UNREADABLE = "no message"
"""Reason for which :class:`Garbage` is refused."""


def liar(
    lie: Callable[[Message], Message], start: int = 1
) -> Callable[[Message, Callable[[Message], Awaitable[Message]]], Awaitable[Message]]:
    """A ``tiny_fleet.Change``: from round ``start`` on, gradients are replaced by a lie."""

    async def change(message: Message, answer: Callable[[Message], Awaitable[Message]]) -> Message:
        honest = await answer(message)
        is_due = honest.kind == "gradients" and honest.header["round"] >= start
        return lie(honest) if is_due else honest

    return change
