"""Parts of a message make the message again, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.protocol import chunking as frames
from taskedge.cooperation.protocol.chunking import HEADER_BYTES, Assembly, parts
from taskedge.cooperation.protocol.message import LARGEST, MessageError

messages = st.binary(max_size=60)
shares = st.integers(1, 20)


def assembled(some) -> bytes | None:
    assembly = Assembly()
    for part in some[:-1]:
        assert assembly.add(part) is None
    return assembly.add(some[-1])


@given(messages, shares)
def test_there_and_back(packed, share):
    made = list(parts(packed, share))
    assert len(made) == max(1, -(-len(packed) // share))
    assert all(len(part) <= share + HEADER_BYTES for part in made)
    assert assembled(made) == packed


@given(st.binary(min_size=3, max_size=60), st.data())
def test_any_other_order_is_refused(packed, data):
    made = list(parts(packed, 1))
    order = data.draw(st.lists(st.sampled_from(range(len(made))), min_size=1, max_size=len(made) + 2))
    assembly = Assembly()
    come: list[int] = []
    for index in order:
        come = [0] if index == 0 else [*come, index]
        if come == list(range(len(made))):
            assert assembly.add(made[index]) == packed
            come = []
        elif come == list(range(len(come))):
            assert assembly.add(made[index]) is None
        else:
            with pytest.raises(MessageError):
                assembly.add(made[index])
            come = []


@given(st.binary(min_size=1, max_size=40), shares, st.data())
def test_any_damage_is_refused(packed, share, data):
    made = list(parts(packed, share))
    which = data.draw(st.integers(0, len(made) - 1))
    at = data.draw(st.integers(0, len(made[which]) - 1))
    damaged = bytearray(made[which])
    damaged[at] ^= data.draw(st.integers(1, 255))
    made[which] = bytes(damaged)
    assembly = Assembly()
    try:
        whole = [assembly.add(part) for part in made]
    except MessageError:
        return
    assert whole == [None] * len(made)  # a count that was raised: it waits for more


@given(st.binary(min_size=1, max_size=40), st.binary(min_size=1, max_size=40))
def test_parts_of_two_messages_do_not_mix(one, other):
    first, second = list(parts(one, 1)), list(parts(other, 1))
    if one == other or len(second) < 2:
        return
    assembly = Assembly()
    assembly.add(first[0])
    if len(first) == 1:
        assembly = Assembly()
    with pytest.raises(MessageError):
        assembly.add(second[1])


@given(st.binary(max_size=100))
def test_noise_is_refused(noise):
    for part in (noise, b"TEP" + noise):
        with pytest.raises(MessageError):
            Assembly().add(part)


def test_what_is_too_large_is_refused_before_it_is_kept(monkeypatch):
    with pytest.raises(MessageError, match="the most"):
        next(parts(bytes(LARGEST + 1)))
    made = list(parts(bytes(100), 10))
    monkeypatch.setattr(frames, "LARGEST", 99)
    with pytest.raises(MessageError, match="announces 100 bytes"):
        Assembly().add(made[0])


def test_more_than_was_announced_is_refused():
    first, second = parts(bytes(20), 10)
    assembly = Assembly()
    assert assembly.add(first) is None
    with pytest.raises(MessageError, match="20 were announced"):
        assembly.add(second + b"x")
    with pytest.raises(MessageError, match="part 1 of 2"):  # what came before is dropped
        assembly.add(second)
    assert [assembly.add(part) for part in (first, second)] == [None, bytes(20)]
