"""Messages in parts that a server lets through, put together again only where every part fits.

A part: ``TEP`` + index, count (4 bytes each) + bytes of the whole (8) + SHA-256 of the whole (32) + its share, with
numbers little endian. Parts come in order, since a connection keeps it; one that does not is refused.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from taskedge.cooperation.protocol.message import LARGEST, MessageError

SHARE = 2**20
"""Bytes of a part, at most: below every server's limit, and small enough for signs of life to pass in between."""
_MAGIC = b"TEP"
_HEADER = struct.Struct("<3sIIQ32s")
HEADER_BYTES = _HEADER.size


def parts(packed: bytes, share: int = SHARE) -> Iterator[bytes]:
    """The parts of a message, in order.

    Raises:
        MessageError: it is larger than ``LARGEST``.
    """
    if len(packed) > LARGEST:
        raise MessageError(f"a message of {len(packed):,} bytes: {LARGEST:,} is the most")
    digest = hashlib.sha256(packed).digest()
    count = max(1, -(-len(packed) // share))
    for index in range(count):
        header = _HEADER.pack(_MAGIC, index, count, len(packed), digest)
        yield header + packed[index * share : (index + 1) * share]


@dataclass
class Assembly:
    """Parts of one message as they come. What it keeps in memory is never more than what was received."""

    _head: tuple[int, int, bytes] | None = None
    """Count, bytes of the whole, digest: as the first part says."""
    _shares: list[bytes] = field(default_factory=list)
    _received: int = 0

    def add(self, part: bytes) -> bytes | None:
        """Takes the next part; returns the message when it is whole. A first part begins anew (it was sent again).

        Raises:
            MessageError: the part does not fit what came before, or the whole is not what was announced; all that
                came so far is dropped.
        """
        try:
            return self._add(part)
        except MessageError:
            self._head, self._shares, self._received = None, [], 0
            raise

    def _add(self, part: bytes) -> bytes | None:
        if len(part) < _HEADER.size or part[:3] != _MAGIC:
            raise MessageError(f"{len(part):,} bytes that are no part of a message")
        _, index, count, total, digest = _HEADER.unpack_from(part)
        share = part[_HEADER.size :]
        if total > LARGEST:
            raise MessageError(f"a message that announces {total:,} bytes: {LARGEST:,} is the most")
        if index == 0:
            self._head, self._shares, self._received = (count, total, digest), [], 0
        if index != len(self._shares) or self._head != (count, total, digest):
            raise MessageError(f"part {index} of {count} where part {len(self._shares)} was to come")
        if not share and total:
            raise MessageError(f"part {index} of {count} is empty")
        self._shares.append(share)
        self._received += len(share)
        last = index + 1 == count
        if index >= count or self._received > total or (last and self._received != total):
            raise MessageError(f"{self._received:,} bytes in {index + 1} of {count} parts, {total:,} were announced")
        if not last:
            return None
        whole = share if count == 1 else b"".join(self._shares)
        self._head, self._shares, self._received = None, [], 0
        if hashlib.sha256(whole).digest() != digest:
            raise MessageError(f"a message of {total:,} bytes that was damaged on its way")
        return whole
