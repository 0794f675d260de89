"""A device's description survives the wire, and malformed ones are refused."""

from dataclasses import replace

import pytest
from shapes import profile

from taskedge.cooperation.protocol.device_info import PROTOCOL, DeviceInfo, read_device_info
from taskedge.cooperation.protocol.message import Message, MessageError

INFO = DeviceInfo("abc", ("no", "yes"), 20, 1e9, profile(), "r", 3, "digest")


@pytest.mark.parametrize("info", [INFO, replace(INFO, labels=(), profile=None, run="", version=None)])
def test_a_description_survives_the_wire(info):
    assert read_device_info(Message.unpack(info.message().pack())) == info


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Message("error", {"why": "no"}), f"protocol None, not {PROTOCOL}"),
        (Message("hello", {**INFO.message().header, "protocol": 1}), f"protocol 1, not {PROTOCOL}"),
        (Message("hello", {"protocol": PROTOCOL}), "KeyError"),
        (Message("hello", {**INFO.message().header, "rows": "many"}), "its rows are 'many'"),
        (Message("hello", {**INFO.message().header, "labels": 3}), "labels are 3"),
        (Message("hello", {**INFO.message().header, "labels": "no"}), "labels are 'no'"),
        (Message("hello", {**INFO.message().header, "profile": {"model": "toy"}}), "ValidationError"),
        (Message("hello", {**INFO.message().header, "rows": 10**400}), "its rows are 1000"),
        (Message("hello", {**INFO.message().header, "version": -1}), "its version are -1"),
        (Message("hello", {**INFO.message().header, "memory_bytes": -1e308}), "its memory_bytes are -1e"),
        (Message("hello", {**INFO.message().header, "memory_bytes": 10**400}), "its memory_bytes are 1000"),
        (Message("hello", {**INFO.message().header, "memory_bytes": True}), "its memory_bytes are True"),
        (
            Message("hello", {**INFO.message().header, "profile": profile().model_dump() | {"idle_bytes": 1e308}}),
            "a number of its profile is outside",
        ),
    ],
)
def test_a_malformed_description_is_refused(message, why):
    with pytest.raises(MessageError, match=why):
        read_device_info(message)


def test_a_device_of_an_earlier_revision_states_no_support():
    header = {key: value for key, value in INFO.message().header.items() if key != "support"}
    assert read_device_info(Message("hello", header)).support == ""


def test_a_reason_is_short_however_much_the_device_sent():
    with pytest.raises(MessageError) as error:
        read_device_info(Message("hello", {**INFO.message().header, "rows": "x" * 10**6}))
    assert len(str(error.value)) < 400
