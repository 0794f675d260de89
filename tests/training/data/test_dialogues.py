"""Dialogues are read with the state after each turn of the user; what is wrong is named by row and turn."""

from __future__ import annotations

import json

import pytest
from generated_dialogues import HELD_OUT, SLOTS, generated_dialogues, write_dialogues

from taskedge.errors import InputError
from taskedge.training.data.dialogues import read_dialogues, slots_of, states_of, turns_of

TURNS = [
    {"role": "user", "content": "a cheap  place", "state": {"hotel-price": "cheap"}},
    {"role": "Assistant", "content": "for how many ?"},
    {"role": "user", "content": "two", "state": {"hotel-price": "cheap", "hotel-people": ["2", "two"]}},
]


def test_turns_and_states(tmp_path):
    path = write_dialogues(tmp_path / "d.jsonl", [{"dialogue": "a", "turns": TURNS}])
    table = read_dialogues(path, "turns", answers=True)
    assert turns_of(table.texts[0]) == [("user", "a cheap place"), ("system", "for how many ?"), ("user", "two")]
    assert states_of(table.labels[0])[1] == {"hotel-price": ["cheap"], "hotel-people": ["2", "two"]}
    assert slots_of(table.labels) == ("hotel-people", "hotel-price")
    assert table.understood.endswith("2 turns of users")
    assert read_dialogues(path, "turns", answers=False).labels is None


def test_turns_as_json_text(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text('id,turns\n1,"' + json.dumps(TURNS).replace('"', '""') + '"\n')
    assert len(states_of(read_dialogues(path, "turns", answers=True).labels[0])) == 2


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ("no list", "'turns' is no list of turns like"),
        ([{"role": "tool", "content": "x"}], "turn 1 is of 'tool'; turns of user and system can be read"),
        ([{"role": "user", "content": " "}], "turn 1 has no text"),
        ([{"role": "system", "content": "hi"}], "'turns' has no turn of a user"),
        ([{"role": "user", "content": "hi"}], "turn 1 of the user has no state"),
        ([{"role": "user", "content": "hi", "state": {"a": {}}}], "turn 1: the value of 'a' is {}"),
        ([{"role": "user", "content": "hi", "state": {" ": "x"}}], "turn 1: a slot has no name"),
        ([{"role": "system", "content": "hi", "state": {}}], "turn 1 of the system has a state"),
    ],
)
def test_rows_that_are_no_dialogue(tmp_path, turns, told):
    path = write_dialogues(tmp_path / "d.jsonl", [{"turns": TURNS}, {"turns": turns}])
    with pytest.raises(InputError, match=f"row 2: {told}"):
        read_dialogues(path, "turns", answers=True)


def test_generated_dialogues_hold_values_out():
    made = generated_dialogues(60, held_out=20)
    assert made == generated_dialogues(60, held_out=20)
    assert all(dialogue["dialogue"].startswith("generated-") for dialogue in made)
    values = [
        {value for dialogue in part for turn in dialogue["turns"] for value in turn.get("state", {}).values()}
        for part in (made[:40], made[40:])
    ]
    unseen = {name for names in HELD_OUT.values() for name in names}
    assert not values[0] & unseen
    assert values[1] & unseen
    slots = {slot for dialogue in made for turn in dialogue["turns"] for slot in turn.get("state", {})}
    assert slots == set(SLOTS)
    for dialogue in made:  # every value stands in the text, so a reader can find it
        said = " ".join(turn["content"] for turn in dialogue["turns"])
        assert all(value in said for turn in dialogue["turns"] for value in turn.get("state", {}).values())
