"""taskedge messages as Flower records: one array of bytes, which neither side unpickles or parses differently."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from taskedge.cooperation.protocol.message import Message, MessageError

RECORD, ARRAY = "taskedge", "message"
STYPE = "taskedge.message"
"""Serialization type of the array: its bytes are read by ``Message.unpack``."""


def to_content(message: Message) -> RecordDict:
    """Return a message as the content of a Flower message.

    The content is one array instead of one per tensor, because Flower sends every array by requests of its own.

    Raises:
        MessageError: The message cannot be packed.
    """
    return RecordDict({RECORD: packed_record(message.pack())})


def packed_record(packed: bytes) -> ArrayRecord:
    """Return the bytes of a packed message as a record."""
    return ArrayRecord({ARRAY: Array(dtype="uint8", shape=(len(packed),), stype=STYPE, data=packed)})


def from_content(content: RecordDict, record: str = RECORD) -> Message:
    """Return the message in the content of a Flower message. Inverts :func:`to_content`.

    Raises:
        MessageError: The content has no taskedge message.
    """
    try:
        array = content.array_records[record][ARRAY]
    except KeyError:
        raise MessageError("records that hold no message of taskedge: do both sides run its app?") from None
    if array.stype != STYPE:
        raise MessageError(f"an array of stype {str(array.stype)[:40]!r}, not {STYPE!r}")
    return Message.unpack(array.data)
