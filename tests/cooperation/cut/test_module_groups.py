"""Groups of modules that share an input, the plan on the wire, and the closed form of what crosses."""

from __future__ import annotations

import pytest
import torch

from taskedge.cooperation.cut.cut_messages import CutRefused
from taskedge.cooperation.cut.module_groups import Module, groups_of, payload_numbers, plan_message, read_plan
from taskedge.cooperation.protocol.message import Message

SHAPES = {"q": (4, 6), "k": (4, 6), "o": (6, 4), "up": (8, 6)}


def index(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def plan():
    return {
        "q": Module("q", (4, 6), "q", index(0, 2), index(1, 3)),
        "k": Module("k", (4, 6), "q", index(3), index(3, 5)),
        "o": Module("o", (6, 4), "o", index(0, 1, 2), index(0)),
        "up": Module("up", (8, 6), "up"),
    }


def test_modules_of_one_input_are_one_group_with_the_union_of_their_columns():
    first, second, third = groups_of(plan(), list(SHAPES))
    assert [module.name for module in first.modules] == ["q", "k"]
    assert first.columns.tolist() == [1, 3, 5]
    assert (first.num_columns, first.num_rows, first.row_counts) == (3, 3, [2, 1])
    assert (second.num_columns, second.num_rows) == (1, 3)
    assert (third.num_columns, third.num_rows) == (6, 8)  # a low-rank product reads and changes everything


def test_an_idle_module_leaves_its_group():
    (group,) = groups_of(plan(), ["k"])
    assert group.name == "k"
    assert group.columns.tolist() == [3, 5]


def test_columns_are_gathered_token_by_token():
    x = torch.arange(24.0).view(2, 2, 6)
    first, _, third = groups_of(plan(), list(SHAPES))
    assert first.gather(x).tolist() == x.view(4, 6)[:, [1, 3, 5]].tolist()
    assert first.gather(x).shape == (4, 3)
    assert third.gather(x).tolist() == x.view(4, 6).tolist()


def test_the_closed_form_counts_each_message_once():
    groups = groups_of(plan(), list(SHAPES))
    sums = (3 + 3) + (1 + 3) + (6 + 8)
    assert payload_numbers(groups, 10, 16) == 10 * (3 * 16 + 2 * sums - 3)  # the lowest input needs no gradient
    assert payload_numbers([], 10, 16) == 10 * 2 * 16
    assert payload_numbers(groups, 10, 16, trains=False) == 10 * (2 * 16 + sums)


def test_a_plan_comes_back_from_its_message_in_the_order_of_the_model():
    message = Message.unpack(plan_message(dict(reversed(plan().items())), {"session": "s"}).pack())
    read = read_plan(message, SHAPES)
    assert list(read) == list(SHAPES)
    assert read["k"].shared_input == "q"
    assert read["q"].rows.tolist() == [0, 2]
    assert read["up"].columns is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modules": []}, "0 modules"),
        ({"modules": [["q", "q", 4, 7]]}, "none here"),
        ({"modules": [["z", "q", 4, 6]]}, "none here"),
        ({"modules": [["q", "o", 4, 6]]}, "another width"),
        ({"modules": [["q", "q", 4, 6], ["q", "q", 4, 6]]}, "none here"),
        ({"modules": "q"}, "no modules"),
        ({"modules": [[1, 2, 3, 4]]}, "module"),
    ],
)
def test_a_plan_that_is_not_of_this_base_is_refused(change, words):
    with pytest.raises(CutRefused, match=words):
        read_plan(Message("plan", change), SHAPES)


@pytest.mark.parametrize("rows", [[0, 4], [-1, 2], [2, 1], [1, 1], []])
def test_rows_outside_a_module_are_refused(rows):
    tensors = {"rows/q": torch.tensor(rows, dtype=torch.int32)}
    with pytest.raises(CutRefused, match="rows/q"):
        read_plan(Message("plan", {"modules": [["q", "q", 4, 6]]}, tensors), SHAPES)


def test_a_tensor_of_no_module_is_refused():
    tensors = {"rows/o": torch.tensor([0], dtype=torch.int32)}
    with pytest.raises(CutRefused, match="rows/o"):
        read_plan(Message("plan", {"modules": [["q", "q", 4, 6]]}, tensors), SHAPES)
