"""The chunks of a message make the message again, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.protocol.chunking import HEADER_BYTES, ChunkAssembler, split_message
from taskedge.cooperation.protocol.message import MAX_MESSAGE_BYTES, MessageError

messages = st.binary(max_size=60)
chunk_sizes = st.integers(1, 20)


def assemble(chunks) -> bytes | None:
    assembler = ChunkAssembler()
    for chunk in chunks[:-1]:
        assert assembler.add(chunk) is None
    return assembler.add(chunks[-1])


@given(messages, chunk_sizes)
def test_there_and_back(packed, size):
    chunks = list(split_message(packed, size))
    assert len(chunks) == max(1, -(-len(packed) // size))
    assert all(len(chunk) <= size + HEADER_BYTES for chunk in chunks)
    assert assemble(chunks) == packed


@given(st.binary(min_size=3, max_size=60), st.data())
def test_any_other_order_is_refused(packed, data):
    chunks = list(split_message(packed, 1))
    order = data.draw(st.lists(st.sampled_from(range(len(chunks))), min_size=1, max_size=len(chunks) + 2))
    assembler = ChunkAssembler()
    received: list[int] = []
    for index in order:
        received = [0] if index == 0 else [*received, index]
        if received == list(range(len(chunks))):
            assert assembler.add(chunks[index]) == packed
            received = []
        elif received == list(range(len(received))):
            assert assembler.add(chunks[index]) is None
        else:
            with pytest.raises(MessageError):
                assembler.add(chunks[index])
            received = []


@given(st.binary(min_size=1, max_size=40), chunk_sizes, st.data())
def test_any_damage_is_refused(packed, size, data):
    chunks = list(split_message(packed, size))
    which = data.draw(st.integers(0, len(chunks) - 1))
    at = data.draw(st.integers(0, len(chunks[which]) - 1))
    damaged = bytearray(chunks[which])
    damaged[at] ^= data.draw(st.integers(1, 255))
    chunks[which] = bytes(damaged)
    assembler = ChunkAssembler()
    try:
        results = [assembler.add(chunk) for chunk in chunks]
    except MessageError:
        return
    assert results == [None] * len(chunks)  # a count that was raised: it waits for more


@given(st.binary(min_size=1, max_size=40), st.binary(min_size=1, max_size=40))
def test_chunks_of_two_messages_do_not_mix(one, other):
    first, second = list(split_message(one, 1)), list(split_message(other, 1))
    if one == other or len(second) < 2:
        return
    assembler = ChunkAssembler()
    assembler.add(first[0])
    if len(first) == 1:
        assembler = ChunkAssembler()
    with pytest.raises(MessageError):
        assembler.add(second[1])


@given(st.binary(max_size=100))
def test_noise_is_refused(noise):
    for chunk in (noise, b"TEP" + noise):
        with pytest.raises(MessageError):
            ChunkAssembler().add(chunk)


def test_a_message_that_is_too_large_is_refused_before_it_is_kept():
    with pytest.raises(MessageError, match="the most"):
        next(split_message(bytes(MAX_MESSAGE_BYTES + 1)))
    chunks = list(split_message(bytes(100), 10))
    with pytest.raises(MessageError, match="announces 100 bytes, where 99 can be"):
        ChunkAssembler(max_bytes=99).add(chunks[0])


def test_more_than_was_announced_is_refused():
    first, second = split_message(bytes(20), 10)
    assembler = ChunkAssembler()
    assert assembler.add(first) is None
    with pytest.raises(MessageError, match="20 were announced"):
        assembler.add(second + b"x")
    with pytest.raises(MessageError, match="chunk 1 of 2 instead of chunk 0"):  # what came before is dropped
        assembler.add(second)
    assert [assembler.add(chunk) for chunk in (first, second)] == [None, bytes(20)]
