"""The files that a device gets: what is in them, and that only the announced ones are kept."""

from __future__ import annotations

import json

import pytest
import tiny_task
import torch
from safetensors import safe_open

from taskedge.cooperation.cut import base_parts
from taskedge.cooperation.cut.base_parts import BaseParts, PartsStore, write_parts
from taskedge.cooperation.cut.cut_messages import CutRefused
from taskedge.cooperation.protocol.message import Message


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    base = tiny_task.bert(folder / "base")
    return write_parts(str(base), "encoder.layer", 2, folder / "cloud"), folder / "cloud", base


def sent(parts: BaseParts, store: PartsStore) -> None:
    assert store.expect(parts.header) == ""
    for index in range(len(parts.pieces)):
        store.take(Message.unpack(parts.message(index, {}).pack()))


def test_no_tensor_of_a_block_is_in_them(parts):
    _, folder, base = parts
    with safe_open(folder / "model.safetensors", "pt") as own, safe_open(base / "model.safetensors", "pt") as whole:
        names = set(own.keys())
        assert names == {name for name in whole.keys() if "encoder.layer" not in name}  # noqa: SIM118
        assert all(torch.equal(own.get_tensor(name), whole.get_tensor(name)) for name in names)
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["taskedge_cut_layers"]) == (0, 2)
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_a_device_keeps_them_under_their_digest(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(base_parts, "PIECE_BYTES", 1000)
    made = BaseParts(parts[1])
    assert len(made.pieces) > 5
    store = PartsStore(tmp_path)
    sent(made, store)
    assert {path.name: path.read_bytes() for path in store.path.iterdir()} == {
        path.name: path.read_bytes() for path in parts[1].iterdir()
    }
    assert PartsStore(tmp_path).expect(made.header) == made.digest  # not sent again


def test_a_piece_that_was_changed_is_refused_and_nothing_is_kept(parts, tmp_path):
    made, store = parts[0], PartsStore(tmp_path)
    store.expect(made.header)
    for index in range(len(made.pieces) - 1):
        store.take(made.message(index, {}))
    last = made.message(len(made.pieces) - 1, {})
    content = last.tensors["content"].clone()
    content[0] ^= 1
    with pytest.raises(CutRefused, match="digest"):
        store.take(Message("part", last.header, {"content": content}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "../x.json"}, "not one of a base"),
        ({"file": "code.py"}, "not one of a base"),
        ({"file": ".hidden.json"}, "not one of a base"),
        ({"index": 1}, "piece 1 instead of piece 0"),
        ({"offset": 7}, "piece"),
    ],
)
def test_other_pieces_are_refused(parts, tmp_path, change, words):
    made, store = parts[0], PartsStore(tmp_path)
    store.expect(made.header)
    first = made.message(0, {})
    with pytest.raises(CutRefused, match=words):
        store.take(Message("part", {**first.header, **change}, first.tensors))


def test_more_than_was_announced_is_refused(parts, tmp_path):
    made, store = parts[0], PartsStore(tmp_path)
    store.expect(made.header | {"bytes": 10})
    with pytest.raises(CutRefused, match="more than the 10 bytes"):
        store.take(made.message(0, {}))


@pytest.mark.parametrize("header", [{"parts": "../../x"}, {"pieces": 0}, {"bytes": -1}, {"pieces": True}])
def test_an_announcement_has_a_form(parts, tmp_path, header):
    with pytest.raises(CutRefused):
        PartsStore(tmp_path).expect(parts[0].header | header)
