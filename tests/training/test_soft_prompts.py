"""Where soft prompts start, and rows whose tokens are codes."""

from __future__ import annotations

import json
import signal

import pytest
import tiny_task
import torch
from killed_runs import OFTEN, killed_at
from tiny_task import WORDS, forked, tuning

from taskedge.backbone.loading import load_base
from taskedge.cli.main import main
from taskedge.delta.file import load
from taskedge.errors import InputError
from taskedge.forms.prompt import SYSTEM, USER, PromptLayout, attach_prompt, attached_prompt
from taskedge.training import checkpoint
from taskedge.training.held_out_rows import PartRows
from taskedge.training.soft_prompts import prompt_rows, start_prompt
from taskedge.training.tasks.text_classification import TextClassification
from taskedge.training.tasks.text_generation import LINE, PLAIN, TextGeneration
from taskedge.training.tune_config import TuneConfig

N = len(WORDS) + 4


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return tiny_task.llama(tmp_path_factory.mktemp("llama") / "llama", start=True)


def prompted(folder, **layout):
    base = load_base("text-generation", folder)
    made = PromptLayout(("a", "b"), 2, N, **layout)
    attach_prompt(base.model, made, torch.ones(2, 2, 16), torch.zeros(3, 16) if made.segments else None)
    return base, made


def test_rows_of_a_prompt_and_a_value(language_model):
    row = {"prompt": [2, 5, 6], "input_ids": [2, 5, 6, 7, 3], "labels": [-100] * 3 + [7, 3], "slot": 1}
    base, _ = prompted(language_model)
    (made,) = prompt_rows(base, [row])
    assert made["prompt"] == [2, N + 2, N + 3, 5, 6]
    assert made["input_ids"] == [2, N + 2, N + 3, 5, 6, 7, 3]
    assert made["labels"] == [-100] * 5 + [7, 3]
    base, _ = prompted(language_model, repeat=True)
    assert prompt_rows(base, [row])[0]["input_ids"] == [2, N + 2, N + 3, 5, 6, N + 2, N + 3, 7, 3]
    base, _ = prompted(language_model, where="after")
    assert prompt_rows(base, [row])[0]["input_ids"] == [2, 5, 6, N + 2, N + 3, 7, 3]


def test_roles(language_model):
    base, layout = prompted(language_model, segments=True)
    row = {"prompt": [2, 5, 6], "input_ids": [5, 6, 7], "labels": [-100, -100, 7], "roles": [0, USER, SYSTEM]}
    (made,) = prompt_rows(base, [row])
    k = layout.num_codes
    assert made["prompt"] == [2, N + k, N + 1 + k, 5 + 2 * k, 6 + 3 * k]
    assert made["input_ids"] == [
        N + k,
        N + 1 + k,
        5 + 2 * k,
        6 + 3 * k,
        7,
    ]  # its start is cut: roles count from the end
    del row["roles"]
    assert prompt_rows(base, [row])[0]["input_ids"][-3:] == [5 + 2 * k, 6 + 2 * k, 7]


def test_rows_of_plain_text_and_of_classes(language_model):
    base, _ = prompted(language_model)
    (plain,) = prompt_rows(base, [{"prompt": [2, 5], "input_ids": [2, 5, 3], "labels": [2, 5, 3]}])
    assert plain["input_ids"] == [2, N, N + 1, 5, 3]
    assert plain["labels"] == [2, -100, -100, 5, 3]
    (classed,) = prompt_rows(
        base, [{"input_ids": [2, 5, 3], "attention_mask": [1] * 3, "token_type_ids": [0, 0, 1], "labels": 1}]
    )
    assert classed["input_ids"] == [2, N, N + 1, 5, 3]
    assert (classed["attention_mask"], classed["token_type_ids"], classed["labels"]) == ([1] * 5, [0, 0, 0, 0, 1], 1)


def test_a_start_token_that_only_a_template_writes_is_text(tmp_path):
    """Such as ``<|im_start|>`` of SmolLM2: soft tokens would part it from the name of the role behind it."""
    base, _ = prompted(tiny_task.llama(tmp_path / "llama"))
    base.tokenizer.bos_token = "[CLS]"
    assert prompt_rows(base, [{"prompt": [2, 5]}])[0]["prompt"] == [N, N + 1, 2, 5]


def test_numbers_of_rows_stay_and_a_plain_base_changes_nothing(language_model):
    base, _ = prompted(language_model)
    assert prompt_rows(base, PartRows([{"input_ids": [5], "labels": 0}], [7])).numbers == (7,)
    rows = [{"input_ids": [5]}]
    assert prompt_rows(load_base("text-generation", language_model), rows) is rows


@pytest.mark.parametrize("init", ["words", "random"])
def test_start(language_model, init):
    base, lines = load_base("text-generation", language_model), []
    settings = TuneConfig(
        model=str(language_model),
        train="x.csv",
        form="prompt",
        prompt_tokens=3,
        prompt_init=init,
        prompt_text="good film",
    )
    start_prompt(base, TextGeneration(LINE), settings, lines.append)
    prompt = attached_prompt(base.model)
    words = base.model.get_input_embeddings().weight[[4, WORDS.index("film") + 4, 4]]
    assert torch.equal(prompt.tokens[0], words) == (init == "words")
    assert ("known to learn far less" in lines[0]) == (init == "random")
    assert "'good film'" in lines[0] or init == "random"


@pytest.mark.parametrize(
    ("task", "changes", "told"),
    [
        (TextGeneration(PLAIN), {"prompt_repeat": True}, "--prompt-repeat needs one value to generate after each text"),
        (TextGeneration(PLAIN), {"prompt_segments": True}, "--prompt-segments needs one value"),
        (TextClassification(("a", "b")), {"prompt_where": "after"}, "--prompt-where after needs one value"),
        (TextGeneration(LINE), {"prompt_tokens": 0}, "no soft tokens and no segments"),
    ],
)
def test_refusals(language_model, task, changes, told):
    settings = TuneConfig(model=str(language_model), train="x.csv", form="prompt", **changes)
    with pytest.raises(InputError, match=told):
        start_prompt(load_base("text-generation", language_model), task, settings)


@pytest.mark.parametrize("flag", [["--depth", 1], ["--memory", "1GB"], ["--rotate", 3], ["--budget", "1%"]])
def test_flags_without_a_meaning_are_refused(task, tmp_path, capsys, flag):
    out = tmp_path / "t.safetensors"
    arguments = tuning(task, "--form", "prompt", "--out", out) if "--budget" in flag else without_budget(task, *flag)
    assert main(arguments) == 2
    assert "form 'prompt'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_classifier_with_a_soft_prompt(task, tmp_path, capsys):
    """Train, evaluate the file, describe."""
    out = tmp_path / "t.safetensors"
    assert main(without_budget(task, "--eval", task / "eval.csv", "--out", out, "--json")) == 0
    told = capsys.readouterr()
    quality = json.loads(told.out)["quality"]
    assert "soft tokens for each of 1 slots start from the words of 'text classification: neg, pos'" in told.err
    delta = load(out)
    assert delta.prompt.layout.length == 10
    assert main(["eval", str(out), "--data", str(task / "eval.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == quality["accuracy"]
    assert main(["info", str(out)]) == 0
    assert "soft prompt  10 tokens before the text for each of 1 slots" in capsys.readouterr().out


def without_budget(task, *more):
    arguments = tuning(task, "--form", "prompt", *more)
    place = arguments.index("--budget")
    return arguments[:place] + arguments[place + 2 :]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["int8", "mmap"])
def test_read_only_weights_serve_a_soft_prompt(task, tmp_path, capsys, storage):
    out = tmp_path / "t.safetensors"
    run = without_budget(task, "--weight-storage", storage, "--eval", task / "eval.csv", "--out", out, "--json")
    assert main(run) == 0
    quality = json.loads(capsys.readouterr().out)["quality"]
    assert main(["eval", str(out), "--data", str(task / "eval.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == quality["accuracy"]


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bytes(task, tmp_path):
    whole, out = tmp_path / "whole.safetensors", tmp_path / "t.safetensors"
    assert forked(without_budget(task, *OFTEN, "--out", whole)).code == 0
    run = without_budget(task, *OFTEN, "--out", out)
    assert forked(run, killed_at(checkpoint, "write", call=2, after=True)).code == -signal.SIGKILL
    ended = forked([*run, "--resume"])
    assert ended.code == 0, ended.err
    assert out.read_bytes() == whole.read_bytes()
