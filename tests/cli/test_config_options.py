"""Options come from the settings class: the same names, kinds, defaults and help."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from taskedge.cli.config_options import given, options_of, print_json
from taskedge.cli.tune import command
from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.training.tune_config import TuneSettings


@pytest.mark.parametrize("name", TuneSettings.model_fields)
def test_every_setting_is_a_flag_with_its_help_and_its_default(name):
    field = TuneSettings.model_fields[name]
    option = next(option for option in command.params if option.name == name)
    assert f"--{name.replace('_', '-')}" in option.opts
    assert option.help.startswith(field.description)
    if field.is_required():
        assert option.help.endswith("[needed]")
    elif field.default is not None and not isinstance(field.default, bool):
        assert option.help.endswith(f"[default: {field.default}]")
    assert option.default is None  # so that a settings file is not overruled by what was not given


def test_what_was_given():
    seen = {}

    @click.command()
    @options_of(TuneSettings, "out")
    def taking(**flags):
        seen.update(given(flags))

    arguments = "--text a --text b --lr 1e-2 --no-bf16 --tensorboard --train x.csv --clip 0 --seed 0 --step plain"
    assert CliRunner().invoke(taking, arguments.split()).exit_code == 0
    assert seen == {
        "text": ["a", "b"], "lr": 0.01, "bf16": False, "tensorboard": True, "train": Path("x.csv"), "clip": 0.0,
        "seed": 0, "step": "plain",
    }  # fmt: skip
    assert CliRunner().invoke(taking, ["--out", "x"]).exit_code == 2


@pytest.mark.parametrize(
    ("written", "number"), [("1/8", 0.125), ("3 / 4", 0.75), ("0.1", 0.1), ("1e-2", 0.01), ("1e-1/2", 0.05)]
)
def test_a_number_may_be_a_fraction(written, number):
    seen = {}

    @click.command()
    @options_of(CooperateSettings)
    def taking(**flags):
        seen.update(given(flags))

    assert CliRunner().invoke(taking, ["--active-share", written]).exit_code == 0
    assert seen == {"active_share": number}


@pytest.mark.parametrize("written", ["1/0", "1/", "/8", "1/2/3", "an eighth", ""])
def test_what_is_no_number_is_refused_with_what_to_write(written):
    @click.command()
    @options_of(CooperateSettings)
    def taking(**flags):
        raise AssertionError("it was taken")

    refused = CliRunner().invoke(taking, ["--active-share", written])
    assert refused.exit_code == 2
    assert "write it as 0.125 or 1/8" in refused.output


def test_json_takes_paths(capsys):
    print_json({"out": Path("a/b")})
    assert capsys.readouterr().out == '{\n "out": "a/b"\n}\n'
