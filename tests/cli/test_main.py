"""``taskedge`` itself: instant help, suggestions, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
    """Check that the line has a verb, and flags and arguments that it takes."""
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
    assert f"no such verb {given!r}; did you mean {near!r}? (verbs: {', '.join(VERBS)})" in ended.err


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


def run_in_bash(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``taskedge`` is the command line of this tree."""
    line = f'taskedge() {{ {sys.executable} -m taskedge "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", line], env=tiny_task.environment(), capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_reader_that_has_enough(tuned):
    """``taskedge info FILE | head -1`` ends without an error."""
    process = run_in_bash(f"taskedge info {tuned[0]} | head -1; echo ${{PIPESTATUS[0]}}")
    assert process.stderr == ""
    assert process.stdout.count("\n") == 2


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["--help", "--version", "info --help"])
def test_a_reader_that_has_gone_is_no_error(arguments):
    process = run_in_bash(f"taskedge {arguments} | (exec 0<&-; sleep 1); echo ${{PIPESTATUS[0]}}")
    assert (process.stdout, process.stderr) == ("0\n", "")


FULL = "taskedge: output cannot be written (No space left on device): make room, or write elsewhere\n"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["--help", "--version", "info --help"])
def test_output_on_a_full_disk(arguments):
    process = run_in_bash(f"taskedge {arguments} > /dev/full")
    assert (process.returncode, process.stdout, process.stderr) == (2, "", FULL)


def test_output_and_messages_on_a_full_disk():
    assert run_in_bash("taskedge --help &> /dev/full").returncode == 2
    assert run_in_bash("taskedge nothing &> /dev/full").returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "info DELTA",
        "info DELTA --json",
        "eval DELTA --data eval.csv",
        "predict DELTA --data eval.csv",
        "predict DELTA --data eval.csv --json",
        "export DELTA --to peft --out adapter",
        "plan --fleet fleet.toml",
        "simulate --fleet fleet.toml --rounds 1 --compare none --json",
        "doctor",
    ],
)
def test_the_result_of_a_verb_on_a_full_disk(taskedge, planning, task, tuned, monkeypatch, line):
    monkeypatch.chdir(planning)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        names = {"DELTA": tuned[0], "eval.csv": task / "eval.csv"}
        ended = taskedge(*(names.get(word, word) for word in line.split()))
    assert (ended.code, ended.err.splitlines(keepends=True)[-1]) == (2, FULL)


def test_output_that_fails_at_the_last_flush(monkeypatch, capsys):
    @click.command()
    def command():
        print("buffered")

    monkeypatch.setattr(VerbGroup, "get_command", lambda self, ctx, name: command)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["info"]) == 2
    assert capsys.readouterr().err == FULL


def test_an_error_of_reading_is_not_taken_for_one_of_output(monkeypatch):
    @click.command()
    def command():
        raise FileNotFoundError(2, "No such file or directory", "x")

    monkeypatch.setattr(VerbGroup, "get_command", lambda self, ctx, name: command)
    with pytest.raises(FileNotFoundError):
        main(["info"])


def test_verbs_are_modules():
    there = {path.stem for path in Path(module.__file__).parent.iterdir()}
    assert {module_of(verb) for verb in VERBS} <= there
    assert module_of("import") == "import_"
