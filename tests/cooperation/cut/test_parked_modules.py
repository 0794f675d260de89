"""Values of idle modules: what the cloud adds for them, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from taskedge.cooperation.cut.cut_messages import CutRefused
from taskedge.cooperation.cut.module_groups import Module
from taskedge.cooperation.cut.parked_modules import read_parked
from taskedge.cooperation.protocol.message import Message

PLAN = {
    "q": Module("q", (4, 6), "q", torch.tensor([0, 2]), torch.tensor([1, 3, 5])),
    "up": Module("up", (8, 6), "up"),
}


def read(tensors, active=()):
    return read_parked(Message("pass", {}, tensors), PLAN, set(active))


def test_a_block_adds_its_rows_and_columns():
    block, x = torch.randn(2, 3), torch.randn(2, 5, 6)
    whole = torch.zeros(4, 6)
    whole[PLAN["q"].rows[:, None], PLAN["q"].columns] = block
    assert torch.allclose(read({"parked/q/block": block})["q"](x), x @ whole.t(), atol=1e-6)


def test_factors_add_their_product():
    a, b, x = torch.randn(2, 6), torch.randn(8, 2), torch.randn(3, 6)
    assert torch.allclose(read({"parked/up/a": a, "parked/up/b": b})["up"](x), x @ (b @ a).t(), atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "active", "words"),
    [
        ({"parked/q/block": torch.zeros(3, 2)}, (), "shapes"),
        ({"parked/q/block": torch.full((2, 3), float("inf"))}, (), "not finite"),
        ({"parked/q/block": torch.zeros(2, 3, dtype=torch.float64)}, (), "float64"),
        ({"parked/q/block": torch.zeros(2, 3)}, ("q",), "no idle module"),
        ({"parked/z/block": torch.zeros(2, 3)}, (), "no idle module"),
        ({"parked/up/a": torch.zeros(2, 6), "parked/up/b": torch.zeros(8, 3)}, (), "shapes"),
        ({"parked/up/block": torch.zeros(2, 3)}, (), "shapes"),
        ({"other": torch.zeros(1)}, (), "other"),
    ],
)
def test_values_of_no_idle_module_are_refused(tensors, active, words):
    with pytest.raises(CutRefused, match=words):
        read(tensors, active)
