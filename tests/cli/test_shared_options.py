"""Options made from settings classes have their names, types, defaults and help; output goes where it belongs."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from taskedge.cli.shared_options import (
    given_flags,
    options_of,
    print_json,
    print_status,
    progress,
    refuse_existing,
    refuse_input_as_output,
)
from taskedge.cli.tune import command
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.errors import InputError
from taskedge.training.tune_config import TuneConfig


@pytest.mark.parametrize("name", TuneConfig.model_fields)
def test_every_setting_is_a_flag_with_its_help_and_its_default(name):
    field = TuneConfig.model_fields[name]
    option = next(option for option in command.params if option.name == name)
    assert f"--{name.replace('_', '-')}" in option.opts
    assert option.help.startswith(field.description)
    if field.is_required():
        assert option.help.endswith("[required]")
    elif field.default is not None and not isinstance(field.default, bool):
        assert option.help.endswith(f"[default: {field.default}]")
    assert option.default is None  # so that a settings file is not overruled by what was not given


def test_what_was_given():
    seen = {}

    @click.command()
    @options_of(TuneConfig, "out")
    def taking(**flags):
        seen.update(given_flags(flags))

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
    @options_of(CooperationConfig)
    def taking(**flags):
        seen.update(given_flags(flags))

    assert CliRunner().invoke(taking, ["--active-share", written]).exit_code == 0
    assert seen == {"active_share": number}


@pytest.mark.parametrize("written", ["1/0", "1/", "/8", "1/2/3", "an eighth", ""])
def test_what_is_no_number_is_refused_with_what_to_write(written):
    @click.command()
    @options_of(CooperationConfig)
    def taking(**flags):
        raise AssertionError("it was taken")

    refused = CliRunner().invoke(taking, ["--active-share", written])
    assert refused.exit_code == 2
    assert "write it as 0.125 or 1/8" in refused.output


def test_json_takes_paths(capsys):
    print_json({"out": Path("a/b")})
    assert capsys.readouterr().out == '{\n "out": "a/b"\n}\n'


def test_existing_files_are_refused_before_any_work(tmp_path):
    there, new = tmp_path / "there", tmp_path / "new"
    there.write_text("")
    refuse_existing([None, new], force=False)
    refuse_existing([there, new], force=True)
    with pytest.raises(InputError, match=r"there exists; give --replace to overwrite, or another name"):
        refuse_existing([there, new], force=False)
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; make it first"):
        refuse_existing([tmp_path / "nowhere" / "x"], force=True)


def test_a_file_that_is_read_is_not_replaced(tmp_path):
    folder, inner = tmp_path / "folder", tmp_path / "folder" / "file"
    folder.mkdir()
    inner.write_text("")
    (tmp_path / "link").symlink_to(inner)
    (tmp_path / "other").write_text("")
    refuse_input_as_output(tmp_path / "other", inner, tmp_path / "missing")
    refuse_input_as_output(tmp_path / "new", inner)
    refuse_input_as_output(inner, folder)  # a new file in a folder that is read
    for out, what in ((inner, "is"), (tmp_path / "link", "is"), (folder, "holds")):
        with pytest.raises(InputError, match=f"{out} {what} {inner}, which this command reads"):
            refuse_input_as_output(out, inner)


def test_status_goes_to_standard_error(capsys):
    print_status("one line")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "one line\n")


def test_progress_in_a_log_file_is_whole_lines(capsys, monkeypatch):
    with progress(3, "measuring") as on_progress:
        on_progress(2)
        on_progress(1)
    assert capsys.readouterr() == ("", "")  # too short for a line
    monkeypatch.setattr("taskedge.reporting.progress.SECONDS_BETWEEN_LINES", 0.0)
    with progress(3, "measuring") as on_progress:
        on_progress(2)
        on_progress(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines(keepends=True)
    assert [line.partition(",")[0] for line in lines] == ["measuring: 2 of 3 rows", "measuring: 3 of 3 rows"]
    assert all(line.endswith("\n") and "\r" not in line for line in lines)


def test_a_log_on_a_full_disk_ends_nothing(monkeypatch):
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        print_status("lost")
        with contextlib.suppress(OSError):  # what is buffered
            full.close()


WRITING = (
    "tune --model no/such --train no.csv",
    "import no-adapter",
    "merge no.safetensors",
    "export no.safetensors --to patch",
    "predict no.safetensors --data no.csv",
    "combine no.safetensors no2.safetensors",
    "measure --model no/such --batch-size 1 --length 8",
    "plan --fleet no.toml",
    "simulate --fleet no.toml",
    "bench device --model no/such",
    "cooperate local --model no/such --train no.csv",
    "cooperate serve --model no/such",
)


@pytest.mark.parametrize("line", WRITING)
def test_an_output_that_cannot_be_written_is_found_before_any_work(taskedge, here, line):
    """Not even root can make a file in /proc."""
    ended = taskedge(*line.split(), "--out", "/proc/x.out")
    assert (ended.code, "/proc/x.out: cannot be written" in ended.err) == (2, True), ended.err
    ended = taskedge(*line.split(), "--out", "none/x.out")
    assert (ended.code, "there is no folder none" in ended.err) == (2, True), ended.err


@pytest.mark.parametrize("line", [line for line in WRITING if not line.startswith(("merge", "cooperate"))])
def test_a_device_is_not_replaced(taskedge, here, line):
    os.mkfifo("pipe")
    ended = taskedge(*line.split(), "--out", "pipe", "--replace")
    assert (ended.code, "pipe: cannot be written (it is neither a file nor a folder)" in ended.err) == (2, True)
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize("line", ["plan --fleet no.toml", "simulate --fleet no.toml"])
def test_a_picture_that_cannot_be_drawn_is_found_before_any_work(taskedge, here, line):
    ended = taskedge(*line.split(), "--plot", "picture.docx")
    assert (ended.code, "cannot draw picture.docx: give a name that ends in .svg" in ended.err) == (2, True), ended.err


def test_a_verb_may_accept_fewer_values():
    @click.command()
    @options_of(TuneConfig, narrowed={"form": (("sparse", "lora"), "Which form."), "rule": ((), "Which rule.")})
    def taking(**flags):
        click.echo(flags["form"])

    common = ["--model", "m", "--train", "x.csv"]
    assert CliRunner().invoke(taking, [*common, "--form", "lora"]).output == "lora\n"
    refused = CliRunner().invoke(taking, [*common, "--form", "taps"])
    assert refused.exit_code == 2
    assert "'sparse', 'lora'" in refused.output
    helps = {option.name: option.help for option in taking.params}
    assert (helps["form"], helps["rule"]) == ("Which form.  [default: sparse]", "Which rule.  [default: taskedge]")
