"""``taskedge cut``: help, examples and settings of its verbs."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from pages import DOCS, blocks

from taskedge.cli.cut import command as group
from taskedge.cli.cut.cut_options import settings_from_flags
from taskedge.cooperation.cut.cut_settings import FORMS, NOT_IN_CUT, CutSettings
from taskedge.errors import InputError
from taskedge.selection.columns import COLUMN_SCORES
from taskedge.selection.rules import RULES
from taskedge.training import form_settings, selection_settings
from taskedge.training.tune_config import TuneConfig

VERBS = ["local", "serve", "train"]


def parse(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert words[:2] == ["taskedge", "cut"]
    group.commands[words[2]].make_context(words[2], words[3:])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples_that_parse(taskedge, verb):
    ended = taskedge("cut", verb, "--help")
    assert ended.code == 0
    examples = [line.strip() for line in ended.out.splitlines() if line.strip().startswith("taskedge ")]
    assert examples
    for example in examples:
        parse(example)
    options = [option for option in group.commands[verb].params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_the_commands_of_the_page_parse():
    lines = "".join(blocks(DOCS / "cut.md", "sh")).replace("\\\n", " ").splitlines()
    ours = [line for line in lines if line.startswith("taskedge cut")]
    assert {line.split()[2] for line in ours} == set(VERBS)
    for line in ours:
        parse(line)


def test_settings_without_meaning_are_no_options():
    names = {option.name for option in group.commands["train"].params}
    assert not names & set(NOT_IN_CUT)
    assert "model" not in names
    assert set(CutSettings.model_fields) <= names
    assert set(NOT_IN_CUT) <= set(TuneConfig.model_fields)


@pytest.mark.parametrize("verb", ["local", "train"])
def test_only_what_works_over_the_cut_is_offered(verb):
    """And all of it: choices and names in a help text are those that no check refuses."""
    options = {option.name: option for option in group.commands[verb].params}
    assert tuple(options["form"].type.choices) == FORMS
    assert all(f"({form})" in options["form"].help for form in FORMS)
    rules = [name for name in RULES if not (RULES[name].needs_gradients or RULES[name].choose)]
    assert named_in(options["rule"].help, RULES) == {*rules}
    scores = [name for name in COLUMN_SCORES if not COLUMN_SCORES[name].needs_gradients]
    assert named_in(options["column_score"].help, COLUMN_SCORES) == {*scores}
    assert options["rule"].help.endswith("[default: taskedge]")
    assert "image" not in options["task"].help


def named_in(text, names):
    words = set(re.findall(r"[a-z_]+", text))
    return {name for name in names if name in words}


def test_settings_of_forms_that_are_refused_are_no_options():
    of_forms = {**selection_settings._FORMS_OF, **form_settings._FORMS_OF}
    assert {name for name, forms in of_forms.items() if not {*forms} & {*FORMS}} <= {*NOT_IN_CUT}


@pytest.mark.parametrize("form", ["taps", "prompt"])
def test_a_form_that_is_refused_is_answered_with_those_that_work(taskedge, form, tmp_path):
    common = ["cut", "local", "--model", "m", "--train", "a.csv"]
    ended = taskedge(*common, "--form", form)
    assert ended.code == 2
    assert all(f"'{name}'" in ended.err for name in FORMS)
    (tmp_path / "run.toml").write_text(f'form = "{form}"\n')
    ended = taskedge(*common, "--config", tmp_path / "run.toml")
    assert ended.code != 0
    assert "give sparse, sparse_lora or lora" in ended.err


def test_flags_are_parted_between_both_kinds_of_settings(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('train = "a.csv"\nepochs = 2\n')
    flags = {"config": file, "coding": "bf16", "active_share": 0.125, "budget": "1%", "text": ()}
    config, settings = settings_from_flags(flags, model="m")
    assert (config.model, config.epochs, config.budget) == ("m", 2, "1%")
    assert (settings.coding, settings.active_share) == ("bf16", 0.125)
    with pytest.raises(InputError, match="--coding"):
        settings_from_flags({**flags, "coding": "fp1"}, model="m")
