"""Dialogue states: rows by hand, form prompt and others, the command line, resume."""

from __future__ import annotations

import json

import pytest
import tiny_task
import torch
from generated_dialogues import generated_dialogues, write_dialogues
from tiny_task import WORDS

from taskedge.backbone.loading import load_base
from taskedge.cli.main import main
from taskedge.delta.delta import Provenance
from taskedge.delta.file import load
from taskedge.errors import InputError
from taskedge.forms.prompt import NO_ROLE, SYSTEM, USER, PromptLayout, attach_prompt
from taskedge.training.tasks import Columns
from taskedge.training.tasks.dialogue_state import DialogueState
from taskedge.training.trainer import train

AREA, PRICE = "hotel-good", "hotel-bad"


def dialogue(first, second):
    return {
        "turns": [
            {"role": "user", "content": "the film", "state": first},
            {"role": "system", "content": "so long"},
            {"role": "user", "content": "not short", "state": second},
        ]
    }


@pytest.fixture
def data(tmp_path):
    made = [dialogue({}, {AREA: "fine"}), dialogue({PRICE: "awful"}, {PRICE: "awful", AREA: "good"})]
    return write_dialogues(tmp_path / "train.jsonl", made * 4)


@pytest.fixture
def base(tmp_path):
    return tiny_task.llama(tmp_path / "llama", start=True)


def ids(text):
    return [WORDS.index(word) + 4 if word in WORDS else 1 for word in text.split()]


def bound(data, base, *, soft=False):
    table = DialogueState.read(data, Columns(turns="turns"), answers=True, log=str)
    loaded = load_base("dialogue-state", base)
    if soft:
        layout = PromptLayout((PRICE, AREA), 2, len(WORDS) + 4)
        attach_prompt(loaded.model, layout, torch.ones(2, 2, 16), None)
    task = DialogueState.from_table(table, Columns(turns="turns")).bind(loaded, table, 64)
    return task, loaded, table


def test_rows(data, base):
    task, loaded, table = bound(data, base)
    assert task.slots == (PRICE, AREA)
    assert task.new_tokens == 2
    rows = task.encode(loaded, table, 64, str)
    assert len(rows) == 8 * 2 * 2
    assert rows.numbers[:5] == (1, 1, 1, 1, 2)
    row = rows[3]  # the second turn of the first dialogue, slot hotel-good
    history = [2, *ids("user : the film"), *ids("system : so long"), *ids("user : not short")]
    assert row["prompt"] == [*history, *ids("hotel good :")]
    assert row["roles"] == [NO_ROLE, *[USER] * 4, *[SYSTEM] * 4, *[USER] * 4, *[NO_ROLE] * 3]
    assert row["input_ids"] == [*row["prompt"], *ids("fine"), 3]
    assert row["labels"] == [-100] * len(row["prompt"]) + [*ids("fine"), 3]
    assert row["right"] == ["fine"]
    assert rows[0]["right"] == ["none"]
    soft = bound(data, base, soft=True)
    assert soft[0].encode(soft[1], table, 64, str)[3]["prompt"] == history  # soft tokens say which slot


def test_a_long_dialogue_is_cut_at_its_start_and_counted(data, base):
    task, loaded, table = bound(data, base)
    lines: list[str] = []
    rows = task.encode(loaded, table, 12, lines.append)
    assert rows[3]["prompt"][-10:] == [*ids("system : so long user : not short")[-7:], *ids("hotel good :")]
    assert any("turns: 8 of 16" in line and "at the start of the dialogue" in line for line in lines), lines
    with pytest.raises(InputError, match="leaves no room for a dialogue"):
        task.encode(loaded, table, 5, str)


def test_refusals(data, base, tmp_path):
    task, _, _ = bound(data, base)
    other = write_dialogues(tmp_path / "o.jsonl", [dialogue({"x-y": "fine"}, {})])
    with pytest.raises(InputError, match=r"row 1: the slot 'x-y' does not occur in training"):
        task.check(DialogueState.read(other, Columns(turns="turns"), answers=True, log=str))
    empty = write_dialogues(tmp_path / "e.jsonl", [dialogue({}, {})])
    with pytest.raises(InputError, match="no slot has a value"):
        DialogueState.from_table(
            DialogueState.read(empty, Columns(turns="turns"), answers=True, log=str), Columns(turns="turns")
        )
    with pytest.raises(InputError, match="does not name the slots"):
        DialogueState.from_provenance(Provenance())
    fields = task.to_provenance()["dialogue_state"] | {"normalization": "plain-9"}
    with pytest.raises(InputError, match="normalized by 'plain-9'"):
        DialogueState.from_provenance(Provenance(training={"dialogue_state": fields}))


PROMPT = ("--form", "prompt", "--prompt-tokens", 2, "--prompt-segments")


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [[*PROMPT, "--prompt-repeat"], [*PROMPT, "--prompt-where", "after"], ["--budget", "2%"]]
)
def test_the_command_line(data, base, tmp_path, capsys, form):
    out = tmp_path / "task.safetensors"
    fixed = ["--model", base, "--train", data, "--eval", data, "--epochs", 1, "--batch-size", 8, "--threads", 1]
    assert main(list(map(str, ["tune", *fixed, *form, "--out", out, "--json"]))) == 0
    told = capsys.readouterr()
    measures = json.loads(told.out)["quality"]
    assert {"joint_goal_accuracy", "joint_goal_accuracy_not_empty", "slot_accuracy", f"accuracy of {AREA}"} <= {
        *measures
    }
    assert "values are compared after the normalization 'plain-1'" in told.err
    delta = load(out)
    assert delta.provenance.task == "dialogue-state"
    if "--form" in form:
        assert delta.prompt.layout.slots == (PRICE, AREA)
        assert f"{2 * 2 * 16 + 3 * 16:,} numbers of soft tokens and segments" in told.err
    assert main(["eval", str(out), "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(measures)
    answers = tmp_path / "answers.csv"
    assert main(["predict", str(out), "--data", str(data), "--out", str(answers)]) == 0
    lines = answers.read_text().splitlines()
    assert lines[0] == "row,dialogue,turn,slot,value"
    assert len(lines) == 1 + 32
    assert main(["info", str(out)]) == 0


@pytest.mark.slow
def test_a_share_for_validation_takes_whole_dialogues(data, base, tmp_path, capsys):
    out = tmp_path / "task.safetensors"
    fixed = ["--model", base, "--train", data, "--epochs", 1, "--threads", 1, *PROMPT, "--validation", "25%"]
    assert main(list(map(str, ["tune", *fixed, "--eval-every", 2, "--out", out]))) == 0
    assert load(out).provenance.training["rows"] == 6 * 4


@pytest.mark.slow
def test_trained_prompts_are_far_above_untrained_ones(tmp_path):
    """Each slot has one value, so soft tokens that say which slot is meant are all that a random model needs."""
    made = [dialogue({AREA: "fine", PRICE: "awful"}, {AREA: "fine", PRICE: "awful"})] * 2
    data = write_dialogues(tmp_path / "train.jsonl", made)
    task, loaded, table = bound(data, tiny_task.llama(tmp_path / "llama", start=True))
    from taskedge.forms.install_prompt import install_prompt, prompt_support
    from taskedge.training.soft_prompts import prompt_rows
    from taskedge.training.trainer_config import TrainerConfig

    model = loaded.model
    layout = PromptLayout(task.slots, 4, len(WORDS) + 4, where="after")
    drawn = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    attach_prompt(model, layout, drawn, None)
    rows = prompt_rows(loaded, task.encode(loaded, table, 64, str))
    before = task.evaluate(model, loaded, rows, 8, str)["slot_accuracy"]
    install_prompt(model, prompt_support(model), trainable=[])
    config = TrainerConfig(lr=0.3, epochs=80, batch_size=8, checkpoint_every=10_000)
    train(model, rows, task.collate(loaded), config, tmp_path, progress=False)
    after = task.evaluate(model, loaded, rows, 8, str)["slot_accuracy"]
    assert before == 0.0
    assert after == 1.0


def test_the_generated_grammar_is_read(tmp_path):
    path = write_dialogues(tmp_path / "g.jsonl", generated_dialogues(5, held_out=1))
    table = DialogueState.read(path, Columns(turns="turns"), answers=True, log=str)
    assert len(table) == 5
