"""What coordinator and devices send each other: a few facts and named tensors, as bytes that cannot run code.

Layout: ``TE1`` + length of the facts (4 bytes, little endian) + facts (JSON) + tensors (safetensors, may be empty).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from taskedge.errors import TaskEdgeError

MAGIC = b"TE1"
LARGEST = 64 * 2**20
"""Bytes of a message, at most."""
_LARGEST_FACTS = 2**20


class MessageError(TaskEdgeError):
    """Bytes that are no message, or one that breaks the rules; the message says which."""


@dataclass(frozen=True)
class Message:
    """One message. ``kind`` says what it is for; who sent it is known from the link, never from the message."""

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """On the CPU."""

    def pack(self) -> bytes:
        """The message as bytes.

        Raises:
            MessageError: it is larger than ``LARGEST``, or its facts are no JSON.
        """
        from safetensors.torch import save

        try:
            facts = json.dumps({"kind": self.kind, **self.facts}, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise MessageError(f"the facts of a {self.kind!r} message are no JSON: {error}") from None
        tensors = save({name: tensor.contiguous() for name, tensor in self.tensors.items()}) if self.tensors else b""
        packed = MAGIC + len(facts).to_bytes(4, "little") + facts + tensors
        if len(packed) > LARGEST:
            raise MessageError(f"a {self.kind!r} message of {len(packed):,} bytes: {LARGEST:,} is the most")
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> Message:
        """The message in these bytes.

        Raises:
            MessageError: they hold none.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        if len(packed) > LARGEST or packed[:3] != MAGIC or len(packed) < 7:
            raise MessageError(f"{len(packed):,} bytes that are no message")
        length = int.from_bytes(packed[3:7], "little")
        if length > min(_LARGEST_FACTS, len(packed) - 7):
            raise MessageError(f"a message whose facts claim {length:,} bytes")
        try:
            facts = json.loads(packed[7 : 7 + length])
            kind = facts.pop("kind")
            tensors = load(packed[7 + length :]) if len(packed) > 7 + length else {}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            raise MessageError(f"a damaged message ({type(error).__name__}: {error})") from None
        if not isinstance(kind, str):
            raise MessageError("a message whose kind is no text")
        return cls(kind, facts, tensors)
