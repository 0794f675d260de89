"""A device's description survives the wire, and malformed ones are refused."""

from dataclasses import replace

import pytest
from shapes import profile

from taskedge.cooperation.protocol.device_info import PROTOCOL, DeviceInfo, read_device_info
from taskedge.cooperation.protocol.message import Message, MessageError

INFO = DeviceInfo("abc", ("no", "yes"), 20, 1e9, profile(), "r", 3)


@pytest.mark.parametrize("info", [INFO, replace(INFO, labels=(), profile=None, run="", version=None)])
def test_a_description_survives_the_wire(info):
    assert read_device_info(Message.unpack(info.message().pack())) == info


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Message("error", {"why": "no"}), f"protocol None, not {PROTOCOL}"),
        (Message("hello", {**INFO.message().header, "protocol": 1}), f"protocol 1, not {PROTOCOL}"),
        (Message("hello", {"protocol": PROTOCOL}), "KeyError"),
        (Message("hello", {**INFO.message().header, "rows": "many"}), "ValueError"),
        (Message("hello", {**INFO.message().header, "labels": 3}), "TypeError"),
        (Message("hello", {**INFO.message().header, "profile": {"model": "toy"}}), "ValidationError"),
    ],
)
def test_a_malformed_description_is_refused(message, why):
    with pytest.raises(MessageError, match=why):
        read_device_info(message)


def test_memory_is_at_least_a_byte():
    assert read_device_info(replace(INFO, memory_bytes=-5.0).message()).memory_bytes == 1.0
