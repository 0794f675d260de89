"""LoRA-Dash in a run: counts optimizer steps, resumes around its start to the same bits, and prints its choice."""

from __future__ import annotations

import signal

import pytest
from killed_runs import killed_at
from tiny_task import forked, tuning

from taskedge.cli.main import main
from taskedge.delta.file import load
from taskedge.training import checkpoint

START = 4


def dashing(task, *more):
    """Return the arguments of a run of 12 steps that starts after four, with a checkpoint at every step."""
    arguments = tuning(task, "--form", "lora", "--rank", "2", "--dash", "--directions", "3", "--dash-start", START)
    budget = arguments.index("--budget")
    return [*arguments[:budget], *arguments[budget + 2 :], "--checkpoint-every", "1", *map(str, more)]


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """Return the file of an uninterrupted run, and its messages."""
    out = tmp_path_factory.mktemp("whole") / "task.safetensors"
    ended = forked(dashing(task, "--out", out))
    assert ended.code == 0, ended.err
    return out, ended.err


@pytest.mark.slow
@pytest.mark.parametrize("step", [START - 1, START, START + 1])
def test_a_run_resumed_around_the_start_ends_with_the_same_bytes(task, whole, tmp_path, step):
    out = tmp_path / "task.safetensors"
    killed = killed_at(checkpoint, "write", call=step, after=True)
    assert forked(dashing(task, "--out", out), killed).code == -signal.SIGKILL
    ended = forked(dashing(task, "--out", out, "--resume"))
    assert ended.code == 0, ended.err
    assert out.read_bytes() == whole[0].read_bytes()
    assert ("directions chosen" in ended.err) == (step <= START)


@pytest.mark.slow
def test_the_choice_is_printed_and_the_delta_holds_it(whole):
    out, printed = whole
    assert "LoRA-Dash: 3 directions chosen in each of 12 linears" in printed
    delta = load(out)
    assert {product.rank for product in delta.low_rank.values()} == {5}
    training = delta.provenance.training
    assert (training["dash"], training["directions"], training["dash_start"]) == (True, 3, START)


@pytest.mark.slow
def test_passes_do_not_count_as_steps(task, tmp_path, capsys):
    """Twelve passes in three steps are fewer than four steps."""
    ended = forked(dashing(task, "--out", tmp_path / "d", "--accumulate", "4", "--recompute", "blocks"))
    assert ended.code == 0, ended.err
    assert "LoRA-Dash starts after 4 steps and the run has 3: it is plain LoRA" in ended.err
    assert {product.rank for product in load(tmp_path / "d").low_rank.values()} == {2}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--form", "lora", "--directions", "3"], "--directions has no effect without --dash"),
        (["--dash"], "--dash: has no effect with form 'sparse', only with lora"),
        (["--form", "lora", "--dash", "--memory", "1GB"], "--dash keeps singular directions, whose memory is not"),
    ],
    ids=str,
)
def test_settings_without_effect(task, tmp_path, capsys, flags, told):
    data = ["--model", task / "base", "--train", task / "train.csv", "--out", tmp_path / "d"]
    assert main([*map(str, ["tune", *data, *flags])]) == 2
    assert told in capsys.readouterr().err
