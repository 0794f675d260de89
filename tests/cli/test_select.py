"""``taskedge select``: a file and a line, JSON, and messages for mistakes; what ``tune --support-file`` excludes."""

from __future__ import annotations

import json

import pytest
from tiny_task import tuning

from taskedge.io.lock import hold_lock


def selecting(task, *more):
    data = ["--model", task / "base", "--train", task / "train.csv", "--text", "text", "--label", "label"]
    return ["select", *data, "--budget", "2%", "--batch-size", 8, "--threads", 1, *more]


def test_a_file_and_a_line(taskedge, task, here):
    ended = taskedge(*selecting(task, "--out", "support.safetensors"))
    assert ended.code == 0, ended.err
    assert ended.out.startswith("support.safetensors: 124 entries (2.0019% of 6,194 parameters) in 11 linears")
    assert [path.name for path in here.iterdir()] == ["support.safetensors"]
    again = taskedge(*selecting(task, "--out", "support.safetensors"))
    assert (again.code, "exists; give --replace" in again.err) == (2, True)
    found = json.loads(taskedge(*selecting(task, "--out", "support.safetensors", "--replace", "--json")).out)
    assert (found["entries"], found["rule"], found["linears"]) == (124, "taskedge", 11)
    other = tuning(task, "--support-file", "support.safetensors", "--out", "d", model="other")
    budget = other.index("--budget")
    ended = taskedge(*other[:budget], *other[budget + 2 :])
    assert ended.code == 2
    assert "11 of 11 linears hold other values than the base of the support" in ended.err


def test_entries_of_another_task_are_avoided(taskedge, task, here):
    for more in (["--out", "first"], ["--out", "second", "--avoid", "first"]):
        ended = taskedge(*selecting(task, *more))
        assert ended.code == 0, ended.err
    assert "avoiding the 124 entries of first" in ended.err
    (overlap,) = json.loads(taskedge("info", "first", "second", "--json").out)["overlaps"]
    assert overlap["shared"] == 0
    assert "no.safetensors" in taskedge(*selecting(task, "--out", "x", "--avoid", "no.safetensors")).err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--avoid", "a"], "--avoid has no effect with --support-file, whose entries are chosen already"),
        (
            ["--budget", "1%"],
            "--budget has no effect with --support-file, whose entries are chosen already: leave it out",
        ),
        (["--rule", "random", "--depth", 1], "--rule and --depth have no effect with --support-file"),
        (["--memory", "1GB", "--allow", "depth"], "--allow depth has no effect with --support-file"),
        (["--form", "lora"], "--support-file: has no effect with form 'lora'"),
        ([], "s.safetensors: cannot be read (No such file"),
    ],
    ids=str,
)
def test_what_a_support_file_excludes(taskedge, task, here, flags, told):
    data = ["--model", task / "base", "--train", task / "train.csv", "--text", "text", "--label", "label"]
    ended = taskedge("tune", *data, "--support-file", "s.safetensors", *flags)
    assert ended.code == 2
    assert told in ended.err
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "Missing option '--out'"),
        (["--out", "no/where"], "there is no folder no"),
        (["--out", "s", "--rule", "gradeint"], "did you mean 'gradient'?"),
        (["--out", "s", "--lr", "1"], "No such option"),
    ],
    ids=str,
)
def test_mistakes(taskedge, task, here, more, told):
    ended = taskedge(*selecting(task, *more))
    assert ended.code == 2
    assert told in ended.err
    assert not list(here.iterdir())


def test_the_training_data_is_not_replaced(taskedge, task, tmp_path):
    copy = tmp_path / "train.csv"
    copy.write_bytes((task / "train.csv").read_bytes())
    ended = taskedge("select", "--model", task / "base", "--train", copy, "--out", copy, "--replace")
    assert (ended.code, "which this command reads" in ended.err) == (2, True)


def test_the_target_of_a_link_is_locked(taskedge, task, here):
    (here / "real").mkdir()
    (here / "link").symlink_to(here / "real" / "support")
    with hold_lock(here / "real" / "support"):
        ended = taskedge(*selecting(task, "--out", "link"))
    assert (ended.code, "real/support is in use by process" in ended.err) == (2, True)
