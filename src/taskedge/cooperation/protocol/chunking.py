"""Split messages into chunks that a server accepts, and assemble them only if every chunk fits.

A chunk is ``TEP`` + index, count (4 bytes each) + bytes of the message (8) + SHA-256 of the message (32) + its piece of
the message, with numbers in little endian. Chunks come in order, since a connection keeps it. A chunk out of order is
refused.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from taskedge.cooperation.protocol.message import MAX_MESSAGE_BYTES, MessageError

CHUNK_BYTES = 2**20
"""Most bytes of a message in one chunk: below every server's limit, and small enough for pings to pass in between."""
_MAGIC = b"TEP"
_HEADER = struct.Struct("<3sIIQ32s")
HEADER_BYTES = _HEADER.size


def split_message(packed: bytes, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield the chunks of a packed message, in order.

    Raises:
        MessageError: The message is larger than ``MAX_MESSAGE_BYTES``.
    """
    if len(packed) > MAX_MESSAGE_BYTES:
        raise MessageError(f"a message of {len(packed):,} bytes: {MAX_MESSAGE_BYTES:,} is the most")
    digest = hashlib.sha256(packed).digest()
    count = max(1, -(-len(packed) // chunk_bytes))
    for index in range(count):
        header = _HEADER.pack(_MAGIC, index, count, len(packed), digest)
        yield header + packed[index * chunk_bytes : (index + 1) * chunk_bytes]


@dataclass
class ChunkAssembler:
    """Assembles the chunks of one message. It never keeps more bytes than it received."""

    max_bytes: int = MAX_MESSAGE_BYTES
    """A message that announces more is refused with its first chunk."""
    _announced: tuple[int, int, bytes] | None = None
    """Number of chunks, bytes and digest of the message, from the first chunk."""
    _pieces: list[bytes] = field(default_factory=list)
    _received: int = 0

    def add(self, chunk: bytes) -> bytes | None:
        """Take the next chunk and return the message if it is complete. A first chunk starts over: it was sent again.

        Raises:
            MessageError: The chunk does not fit the ones before, or the message is not the announced one. All chunks
                so far are dropped.
        """
        try:
            return self._add(chunk)
        except MessageError:
            self._reset(None)
            raise

    def _add(self, chunk: bytes) -> bytes | None:
        if len(chunk) < _HEADER.size or chunk[:3] != _MAGIC:
            raise MessageError(f"{len(chunk):,} bytes that are no chunk of a message")
        _, index, count, total, digest = _HEADER.unpack_from(chunk)
        piece = chunk[_HEADER.size :]
        if total > self.max_bytes:
            raise MessageError(f"oversize: a message that announces {total:,} bytes, where {self.max_bytes:,} can be")
        if index == 0:
            self._reset((count, total, digest))
        if index != len(self._pieces) or self._announced != (count, total, digest):
            raise MessageError(f"chunk {index} of {count} instead of chunk {len(self._pieces)}")
        if not piece and total:
            raise MessageError(f"chunk {index} of {count} is empty")
        self._pieces.append(piece)
        self._received += len(piece)
        is_last = index + 1 == count
        if index >= count or self._received > total or (is_last and self._received != total):
            raise MessageError(f"{self._received:,} bytes in {index + 1} of {count} chunks, {total:,} were announced")
        if not is_last:
            return None
        message = piece if count == 1 else b"".join(self._pieces)
        self._reset(None)
        if hashlib.sha256(message).digest() != digest:
            raise MessageError(f"a message of {total:,} bytes that was damaged on its way")
        return message

    def _reset(self, announced: tuple[int, int, bytes] | None) -> None:
        self._announced, self._pieces, self._received = announced, [], 0
