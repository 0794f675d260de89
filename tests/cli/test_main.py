"""``taskedge`` itself: instant help, suggestions, exit codes."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
import tiny_task

from taskedge.cli import main as module
from taskedge.cli.main import VERBS, VerbGroup, cli, main, module_of
from taskedge.errors import InputError, Interrupted, TaskEdgeError

HEAVY = "torch", "transformers", "pydantic", "numpy", "safetensors", "pyarrow"


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom taskedge.cli.main import main\nassert main(['--help']) == 0\n"
        f"heavy = {set(HEAVY)} & sys.modules.keys()\nassert not heavy, heavy"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env=tiny_task.environment(), capture_output=True, text=True, check=True
    )
    assert process.stderr == ""
    said = " ".join(process.stdout.split())
    assert all(f"{verb} {what}" in said for verb, what in VERBS.items())


@pytest.mark.parametrize("name", ["taskedge", "taskedge.cli.main"])
def test_it_can_be_run_as_a_module(name):
    call = [sys.executable, "-m", name, "nothing"]
    process = subprocess.run(call, env=tiny_task.environment(), capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "no such verb 'nothing'" in process.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_that_parses(taskedge, verb):
    ended = taskedge(verb, "--help")
    assert ended.code == 0
    assert ended.err == ""
    examples = [line.strip() for line in ended.out.splitlines() if line.strip().startswith("taskedge ")]
    assert examples
    for example in examples:
        assert_parses(example)
    command = cli.get_command(click.Context(cli), verb)
    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


def assert_parses(line: str) -> None:
    """The line's verb is one and takes these flags and arguments."""
    import shlex

    words = shlex.split(line.split(" | ")[0], comments=True)
    assert words[0] == "taskedge"
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None, words[1]
    command.make_context(words[1], words[2:])


def test_help_of_the_group_parses(taskedge):
    lines = [line.strip() for line in taskedge("--help").out.splitlines()]
    examples = [line for line in lines if line.startswith("taskedge ")]
    assert len(examples) == 3
    for example in examples:
        assert_parses(example)


def test_no_arguments_is_help(taskedge):
    ended = taskedge()
    assert "Verbs:" in ended.out + ended.err


def test_version(taskedge):
    from taskedge import __version__

    assert taskedge("--version").out == f"taskedge, version {__version__}\n"


@pytest.mark.parametrize(("given", "near"), [("tun", "tune"), ("evla", "eval"), ("docter", "doctor")])
def test_an_unknown_verb(taskedge, given, near):
    ended = taskedge(given)
    assert ended.code == 2
    assert f"no such verb {given!r}; did you mean {near!r}? (verbs: tune, estimate, eval, " in ended.err


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (InputError("what, where, what next"), 2, "taskedge: what, where, what next\n"),
        (Interrupted("interrupted: go on with --resume"), 130, "taskedge: interrupted: go on with --resume\n"),
        (KeyboardInterrupt(), 130, "taskedge: interrupted\n"),
        (click.UsageError("no"), 2, "Error: no\n"),
    ],
)
def test_exit_codes(monkeypatch, capsys, raised, code, told):
    @click.command()
    def command():
        raise raised

    monkeypatch.setattr(VerbGroup, "get_command", lambda self, ctx, name: command)
    assert main(["info"]) == code
    assert capsys.readouterr().err.endswith(told)


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    @click.command()
    def command():
        raise RuntimeError("ours")

    monkeypatch.setattr(VerbGroup, "get_command", lambda self, ctx, name: command)
    with pytest.raises(RuntimeError, match="ours"):
        main(["info"])
    assert TaskEdgeError.exit_code == 2


def test_a_reader_that_has_enough(tuned):
    """``taskedge info FILE | head -1`` ends well."""
    call = f"{sys.executable} -m taskedge.cli.main info {tuned[0]} | head -1"
    process = subprocess.run(call, shell=True, env=tiny_task.environment(), capture_output=True, text=True, check=False)
    assert "Traceback" not in process.stderr
    assert process.stdout.count("\n") == 1


def test_verbs_are_modules():
    from pathlib import Path

    there = {path.stem for path in Path(module.__file__).parent.iterdir()}
    assert {module_of(verb) for verb in VERBS} <= there
    assert module_of("import") == "import_"
