"""``taskedge cut``: help, examples and settings of its verbs."""

from __future__ import annotations

import shlex

import click
import pytest
from pages import DOCS, blocks

from taskedge.cli.cut import command as group
from taskedge.cli.cut.cut_options import settings_from_flags
from taskedge.cooperation.cut.cut_settings import NOT_IN_CUT, CutSettings
from taskedge.errors import InputError
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


def test_flags_are_parted_between_both_kinds_of_settings(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('train = "a.csv"\nepochs = 2\n')
    flags = {"config": file, "coding": "bf16", "active_share": 0.125, "budget": "1%", "text": ()}
    config, settings = settings_from_flags(flags, model="m")
    assert (config.model, config.epochs, config.budget) == ("m", 2, "1%")
    assert (settings.coding, settings.active_share) == ("bf16", 0.125)
    with pytest.raises(InputError, match="--coding"):
        settings_from_flags({**flags, "coding": "fp1"}, model="m")
