"""Our messages as Flower's records: one array of bytes, which neither side unpickles or parses as anything else."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from taskedge.cooperation.protocol.message import Message, MessageError

RECORD, ARRAY = "taskedge", "message"
STYPE = "taskedge.message"
"""How the bytes are to be read: ``Message.unpack``."""


def to_content(message: Message) -> RecordDict:
    """A message's bytes as content. One array and not one per tensor: Flower sends every array as requests of its own.

    Raises:
        MessageError: it cannot be packed.
    """
    return RecordDict({RECORD: packed_record(message.pack())})


def packed_record(packed: bytes) -> ArrayRecord:
    """The bytes as a record."""
    return ArrayRecord({ARRAY: Array(dtype="uint8", shape=(len(packed),), stype=STYPE, data=packed)})


def from_content(content: RecordDict, record: str = RECORD) -> Message:
    """The mirror image of :func:`to_content`.

    Raises:
        MessageError: there is no message of ours in it.
    """
    try:
        array = content.array_records[record][ARRAY]
    except KeyError:
        raise MessageError("records that hold no message of taskedge: do both sides run its app?") from None
    if array.stype != STYPE:
        raise MessageError(f"an array of stype {str(array.stype)[:40]!r}, not {STYPE!r}")
    return Message.unpack(array.data)
