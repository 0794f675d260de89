"""Messages between coordinator and devices: a header and named tensors, as bytes that cannot run code.

Layout: ``TE1`` + length of the header (4 bytes, little endian) + header (JSON) + tensors (safetensors, may be empty).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from taskedge.cooperation.protocol.bounds import short_reason
from taskedge.cooperation.protocol.strict_json import parse_json
from taskedge.errors import TaskEdgeError
from taskedge.io.container import deserialize, serialize

MAGIC = b"TE1"
MAX_MESSAGE_BYTES = 64 * 2**20
"""Largest size of a message."""
MAX_TENSORS = 2**16
"""Most tensors in a message."""
_MAX_HEADER_BYTES = 2**20


class MessageError(TaskEdgeError):
    """Bytes that are no message, or a message that breaks the rules of the protocol."""


@dataclass(frozen=True)
class MessageLimits:
    """Largest message that a receiver expects. A message beyond it is refused before its content is read."""

    max_bytes: int = MAX_MESSAGE_BYTES
    max_tensors: int = MAX_TENSORS


HEADER_ONLY = MessageLimits(max_bytes=_MAX_HEADER_BYTES, max_tensors=0)
"""Limits of an answer without tensors."""
_NO_LIMITS = MessageLimits()


class SharedTensors(Mapping[str, Tensor]):
    """Tensors that many messages carry: they are serialized once.

    Args:
        tensors: On the CPU. They must not change.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    @cached_property
    def serialized(self) -> bytes:
        """The tensors as bytes; empty without any."""
        return serialize(self._tensors) if self._tensors else b""

    def __getitem__(self, name: str) -> Tensor:
        """Return one tensor."""
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._tensors)


@dataclass(frozen=True)
class Message:
    """One message. The sender is known from the link, never from the message."""

    kind: str
    """Purpose of the message, which decides the fields of the header."""
    header: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """On the CPU."""

    @cached_property
    def packed(self) -> bytes:
        """The message as bytes, made once (:meth:`pack`): for a message that many devices get."""
        return self.pack()

    def pack(self) -> bytes:
        """Return the message as bytes.

        Raises:
            MessageError: It is larger than ``MAX_MESSAGE_BYTES``, or its header is no JSON.
        """
        try:
            header = json.dumps({"kind": self.kind, **self.header}, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise MessageError(f"the header of a {self.kind!r} message is no JSON: {error}") from None
        shared = self.tensors if isinstance(self.tensors, SharedTensors) else SharedTensors(self.tensors)
        tensors = shared.serialized
        packed = MAGIC + len(header).to_bytes(4, "little") + header + tensors
        if len(packed) > MAX_MESSAGE_BYTES:
            raise MessageError(f"a {self.kind!r} message of {len(packed):,} bytes: {MAX_MESSAGE_BYTES:,} is the most")
        return packed

    @classmethod
    def unpack(cls, packed: bytes, limits: MessageLimits = _NO_LIMITS) -> Message:
        """Return the message in these bytes.

        Raises:
            MessageError: They are no message, or one beyond ``limits``.
        """
        if len(packed) > limits.max_bytes:
            raise MessageError(f"oversize: {len(packed):,} bytes, where at most {limits.max_bytes:,} can be")
        if packed[:3] != MAGIC or len(packed) < 7:
            raise MessageError(f"{len(packed):,} bytes that are no message")
        length = int.from_bytes(packed[3:7], "little")
        if length > min(_MAX_HEADER_BYTES, len(packed) - 7):
            raise MessageError(f"a message whose header claims {length:,} bytes")
        tensor_bytes = packed[7 + length :]
        _check_num_tensors(tensor_bytes, limits.max_tensors)
        try:
            header = parse_json(packed[7 : 7 + length])
            kind = header.pop("kind")
            tensors = deserialize(tensor_bytes)[1] if tensor_bytes else {}
        except Exception as error:  # whatever the bytes make a parser do, they are no message
            raise MessageError(f"a damaged message ({type(error).__name__}: {short_reason(error)})") from None
        if len(tensors) > limits.max_tensors:
            raise MessageError(f"a message of {len(tensors):,} tensors, where at most {limits.max_tensors:,} can be")
        if not isinstance(kind, str):
            raise MessageError("a message whose kind is no text")
        return cls(kind, header, tensors)


def _check_num_tensors(content: bytes, most: int) -> None:
    """Refuse a safetensors file with more than ``most`` tensors before it is parsed.

    Every tensor has an object of its own in the file's header, so the braces bound their number. A brace inside a name
    counts too: no parameter's name has one.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    num_objects = content[8 : min(end, len(content))].count(b"{")
    if num_objects > most + 2:  # the header itself and its metadata
        raise MessageError(f"a message of about {num_objects - 1:,} tensors, where at most {most:,} can be")
