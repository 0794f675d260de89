"""Messages between coordinator and devices: a header and named tensors, as bytes that cannot run code.

Layout: ``TE1`` + length of the header (4 bytes, little endian) + header (JSON) + tensors (safetensors, may be empty).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from taskedge.errors import TaskEdgeError
from taskedge.io.container import deserialize, serialize

MAGIC = b"TE1"
MAX_MESSAGE_BYTES = 64 * 2**20
"""Largest size of a message."""
_MAX_HEADER_BYTES = 2**20


class MessageError(TaskEdgeError):
    """Bytes that are no message, or a message that breaks the rules of the protocol."""


@dataclass(frozen=True)
class Message:
    """One message. The sender is known from the link, never from the message."""

    kind: str
    """Purpose of the message, which decides the fields of the header."""
    header: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """On the CPU."""

    def pack(self) -> bytes:
        """Return the message as bytes.

        Raises:
            MessageError: It is larger than ``MAX_MESSAGE_BYTES``, or its header is no JSON.
        """
        try:
            header = json.dumps({"kind": self.kind, **self.header}, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise MessageError(f"the header of a {self.kind!r} message is no JSON: {error}") from None
        tensors = serialize(self.tensors) if self.tensors else b""
        packed = MAGIC + len(header).to_bytes(4, "little") + header + tensors
        if len(packed) > MAX_MESSAGE_BYTES:
            raise MessageError(f"a {self.kind!r} message of {len(packed):,} bytes: {MAX_MESSAGE_BYTES:,} is the most")
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> Message:
        """Return the message in these bytes.

        Raises:
            MessageError: They are no message.
        """
        if len(packed) > MAX_MESSAGE_BYTES or packed[:3] != MAGIC or len(packed) < 7:
            raise MessageError(f"{len(packed):,} bytes that are no message")
        length = int.from_bytes(packed[3:7], "little")
        if length > min(_MAX_HEADER_BYTES, len(packed) - 7):
            raise MessageError(f"a message whose header claims {length:,} bytes")
        try:
            header = json.loads(packed[7 : 7 + length])
            kind = header.pop("kind")
            tensors = deserialize(packed[7 + length :])[1] if len(packed) > 7 + length else {}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MessageError(f"a damaged message ({type(error).__name__}: {error})") from None
        if not isinstance(kind, str):
            raise MessageError("a message whose kind is no text")
        return cls(kind, header, tensors)
