"""The chosen modules in the run's folder, and in the cloud's answer."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import tiny
import torch
from torch import nn

from taskedge.cooperation.cut.cut_messages import CutRefused
from taskedge.cooperation.cut.cut_state import read_chosen, read_support_message, write_chosen
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.payloads import encode_support
from taskedge.errors import InputError
from taskedge.selection.select import select


@dataclass
class Hollow:
    model: nn.Module = field(default_factory=tiny.bert)
    num_parameters: int = 5859

    def own_name(self, name: str) -> str:
        return f"bert.{name}"


def support_message():
    model = tiny.bert()
    support = select(model.base_model, [tiny.batch(model)["input_ids"]], budget="2%", max_columns=3)
    header, tensors = encode_support(support)
    linears = dict(model.base_model.named_modules())
    tensors |= {f"base/{name}": linears[name].weight[s.rows, s.columns].detach() for name, s in support.linears.items()}
    return support, Message.unpack(Message("support", {"support": header}, tensors).pack())


def test_a_support_comes_with_the_names_of_the_device_and_is_kept(tmp_path):
    support, message = support_message()
    chosen = read_support_message(message, Hollow(), rank=2)
    assert {f"bert.{name}" for name in support.linears} == set(chosen.support.linears)
    assert chosen.support.model_parameters == 5859
    name = "encoder.layer.0.attention.self.value"
    assert chosen.shared[f"bert.{name}"] == f"bert.{support.linears[name].shared_input}"
    write_chosen(chosen, tmp_path)
    kept = read_chosen(tmp_path)
    assert kept.shared == chosen.shared
    assert all(torch.equal(kept.base_values[name], value) for name, value in chosen.base_values.items())
    assert all(
        torch.equal(kept.support.linears[name].flat, linear.flat) for name, linear in chosen.support.linears.items()
    )


def test_low_rank_modules_are_kept(tmp_path):
    name = "encoder.layer.0.output.dense"
    message = Message("support", {"rank": 2, "digests": {name: "00ff"}, "shared": {name: name}})
    chosen = read_support_message(message, Hollow(), rank=2)
    assert chosen.support.low_rank == {f"bert.{name}": 2}
    assert chosen.support.num_low_rank_parameters == 2 * (16 + 32)
    write_chosen(chosen, tmp_path)
    assert read_chosen(tmp_path).digests == {f"bert.{name}": "00ff"}


def test_answers_that_are_no_modules_are_refused():
    _, message = support_message()
    tensors = dict(message.tensors)
    del tensors[next(name for name in tensors if name.startswith("base/"))]
    with pytest.raises(CutRefused, match="base's values"):
        read_support_message(Message("support", message.header, tensors), Hollow(), rank=2)
    with pytest.raises(CutRefused, match="does not have"):
        read_support_message(Message("support", {"digests": {"x": ""}, "shared": {"x": "x"}}), Hollow(), rank=2)
    with pytest.raises(CutRefused, match="without digests"):
        read_support_message(Message("support", {"digests": {"x": ""}, "shared": {}}), Hollow(), rank=2)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"chosen\.safetensors"):
        read_chosen(tmp_path)
