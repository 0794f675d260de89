"""Messages survive packing, and bytes that are no message are refused."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.protocol.message import MAGIC, MAX_MESSAGE_BYTES, Message, MessageError, SharedTensors
from taskedge.io.container import serialize

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.uint8)
tensors = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)).map(
        lambda made: torch.ones(made[1], dtype=made[0])
    ),
    max_size=3,
)
headers = st.dictionaries(
    st.text(max_size=5).filter(lambda name: name != "kind"),
    st.integers(-(2**63) + 1, 2**63 - 1) | st.text() | st.none(),
)


@given(st.text(max_size=10), headers, tensors)
def test_a_message_survives_packing(kind, header, tensors):
    back = Message.unpack(Message(kind, header, tensors).pack())
    assert (back.kind, back.header) == (kind, header)
    assert back.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        assert torch.equal(back.tensors[name], tensor)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise):
    for packed in (noise, MAGIC + noise, MAGIC + len(noise).to_bytes(4, "little") + noise):
        with pytest.raises(MessageError):
            Message.unpack(packed)


@given(st.integers(0, 400))
def test_a_message_cut_short_is_refused(kept):
    packed = Message("task", {"round": 3}, {"x": torch.arange(40.0)}).pack()
    header_only = 7 + int.from_bytes(packed[3:7], "little")
    if kept < len(packed) and kept != header_only:
        with pytest.raises(MessageError):
            Message.unpack(packed[:kept])


def test_a_header_that_is_no_json_and_a_large_message_are_refused(monkeypatch):
    with pytest.raises(MessageError, match="no JSON"):
        Message("task", {"x": float("nan")}).pack()
    with pytest.raises(MessageError, match="the most"):
        Message("task", {}, {"x": torch.zeros(MAX_MESSAGE_BYTES // 4)}).pack()


def test_the_kind_must_be_a_text():
    for header in ({"kind": 3}, {}, [1], "kind"):
        text = json.dumps(header).encode()
        with pytest.raises(MessageError):
            Message.unpack(MAGIC + len(text).to_bytes(4, "little") + text)


def test_tensors_that_many_messages_carry_are_serialized_once(monkeypatch):
    from taskedge.cooperation.protocol import message

    calls = []
    monkeypatch.setattr(message, "serialize", lambda tensors: calls.append(1) or serialize(tensors))
    tensors = {"x": torch.arange(6.0).view(2, 3)}
    shared = SharedTensors(tensors)
    packed = [Message("task", {"n": number}, shared).pack() for number in range(3)]
    assert packed == [Message("task", {"n": number}, tensors).pack() for number in range(3)]
    assert len(calls) == 4
    install = Message("install", {}, shared)
    assert install.packed is install.packed
    assert Message("task", {}, SharedTensors({})).pack() == Message("task").pack()
