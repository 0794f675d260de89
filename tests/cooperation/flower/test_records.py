"""Messages pass through Flower's records byte by byte, and nothing else is taken for one."""

import pytest
import torch

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'taskedge[flower]' in an environment of its own")
import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from taskedge.cooperation.flower.records import ARRAY, RECORD, from_content, to_content
from taskedge.cooperation.protocol.message import Message, MessageError


def test_a_message_comes_back_as_it_was():
    sent = Message("task", {"round": 3, "x": [1.5, None]}, {"a": torch.arange(3.0), "b": torch.ones(2).bfloat16()})
    content = to_content(sent)
    assert content.array_records[RECORD][ARRAY].data == sent.pack()
    found = from_content(content)
    assert (found.kind, found.header) == (sent.kind, sent.header)
    assert found.tensors.keys() == {"a", "b"}
    assert found.tensors["b"].dtype == torch.bfloat16


def wrong(array):
    return RecordDict({RECORD: ArrayRecord({ARRAY: array})})


PICKLED = b"\x80\x04\x95\x00cposix\nsystem\n"
WRONG = {
    "hold no message": RecordDict(),
    "hold no message of": RecordDict({RECORD: ArrayRecord()}),
    "stype 'numpy.ndarray'": wrong(Array(np.zeros(3, dtype=np.uint8))),
    "that are no message": wrong(Array("uint8", (1,), "taskedge.message", PICKLED)),
    "damaged": wrong(Array("uint8", (1,), "taskedge.message", b"TE1\x02\x00\x00\x00{}")),
}


@pytest.mark.parametrize("why", sorted(WRONG))
def test_what_is_no_message_is_refused(why):
    with pytest.raises(MessageError, match=why):
        from_content(WRONG[why])
