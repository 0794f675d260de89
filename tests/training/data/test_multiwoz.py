"""The converter on files made by hand in the shapes of MultiWOZ 2.0 to 2.4: no file of the data set is here."""

from __future__ import annotations

import json

import pytest

from taskedge.errors import InputError
from taskedge.training.data.dialogues import read_dialogues, states_of, turns_of
from taskedge.training.data.multiwoz import convert, main


def log():
    hotel = {
        "book": {"booked": [], "people": "2", "day": ""},
        "semi": {"name": "the acorn|acorn house", "area": "not mentioned"},
    }
    police = {"book": {"booked": []}, "semi": {"name": "station"}}
    return {
        "goal": {},
        "log": [
            {"text": "A hotel, please.", "metadata": {}},
            {"text": "Which one?", "metadata": {"hotel": {"book": {"booked": []}, "semi": {"name": ""}}}},
            {"text": "The acorn for two.", "metadata": {}},
            {"text": "Booked.", "metadata": {"hotel": hotel, "police": police}},
        ],
    }


def test_a_file_of_logs(tmp_path, capsys):
    source, names, out = tmp_path / "data.json", tmp_path / "valListFile.json", tmp_path / "train.jsonl"
    source.write_text(json.dumps({"MUL1.json": log(), "MUL2.json": log(), "SNG3.json": log()}))
    names.write_text("MUL2.json\n")
    assert main([str(source), str(out), "--without", str(names)]) == 0
    assert "2 dialogues, 4 turns of users, 2 slots; left out: 1 dialogue" in capsys.readouterr().out
    table = read_dialogues(out, "turns", answers=True)
    assert states_of(table.labels[0]) == [
        {},
        {"hotel-book people": ["2"], "hotel-name": ["the acorn", "acorn house"]},
    ]
    assert turns_of(table.texts[0])[1] == ("system", "Which one?")
    assert main([str(source), str(out), "--only", str(names)]) == 0
    assert [json.loads(line)["dialogue"] for line in out.read_text().splitlines()] == ["MUL2.json"]
    assert convert(source, out, domains=["police"]).endswith("6 turns of users, 1 slot; left out: 0 dialogues")


def test_a_folder_of_frames(tmp_path):
    def user(text, **services):
        frames = [
            {"service": name, "state": {"slot_values": {f"{name}-{slot}": values for slot, values in state.items()}}}
            for name, state in services.items()
        ]
        return {"speaker": "USER", "utterance": text, "frames": frames}

    turns = [
        user("A cheap hotel.", hotel={"pricerange": ["cheap"]}),
        {"speaker": "SYSTEM", "utterance": "And?", "frames": []},
        user("A train on friday.", train={"day": ["friday", "fri"]}, bus={"day": ["monday"]}),
        {"speaker": "SYSTEM", "utterance": "Done.", "frames": []},
        user("No hotel after all.", hotel={}),
    ]
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "dialogues_001.json").write_text(json.dumps([{"dialogue_id": "PMUL1.json", "turns": turns}]))
    (folder / "schema.json").write_text("{}")
    convert(folder, tmp_path / "train.jsonl")
    assert states_of(read_dialogues(tmp_path / "train.jsonl", "turns", answers=True).labels[0]) == [
        {"hotel-pricerange": ["cheap"]},
        {"hotel-pricerange": ["cheap"], "train-day": ["friday", "fri"]},
        {"train-day": ["friday", "fri"]},
    ]


def test_other_files_are_refused(tmp_path, capsys):
    source, out = tmp_path / "data.json", tmp_path / "x.jsonl"
    with pytest.raises(InputError, match="cannot be read"):
        convert(source, out)
    source.write_text('{"MUL1.json": {"turns": []}}')
    with pytest.raises(InputError, match=r"dialogue MUL1.json: no dialogue of MultiWOZ \(KeyError\('log'\)\)"):
        convert(source, out)
    with pytest.raises(InputError, match="has no dialogues_"):
        convert(tmp_path, out)
    source.write_text(json.dumps({"MUL1.json": log()}))
    with pytest.raises(InputError, match="no dialogue is left of 1"):
        convert(source, out, only=["other"])
    assert main([str(source), str(out), "--only", str(tmp_path / "none")]) == 2
    assert "error:" in capsys.readouterr().out
    assert not out.exists()
