"""The command line of a device, also as a systemd unit."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from taskedge.cli.cooperate import command as group
from taskedge.cli.cooperate.join import join_command


def test_the_unit_of_a_device_joins_with_the_same_options(taskedge, here, task):
    taskedge("cooperate", "init", "--name", "plant")
    taskedge("cooperate", "enrol", "d1")
    (here / "local.csv").write_text("")
    flags = ["--model", task / "base", "--data", "local.csv", "--class", "neg", "--class", "very pos", "--threads", "2"]
    flags += ["--emulate"]
    ended = taskedge("cooperate", "join", "--bundle", "plant/devices/d1", *flags, "--unit")
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart="))
    assert words[:5] == [sys.executable, "-m", "taskedge.cli.main", "cooperate", "join"]
    given = group.commands["join"].make_context("join", words[5:]).params
    assert given["bundle"] == here / "plant" / "devices" / "d1"
    assert given["data"] == here / "local.csv"
    assert (given["classes"], given["threads"], given["stay"]) == (("neg", "very pos"), 2, True)
    assert given["emulate"]


def test_a_command_line_has_the_options_that_are_set():
    options = {"bundle": Path("b"), "classes": ("x", "very y"), "text": [], "threads": 2, "emulate": True}
    words = join_command(options | {"stay": False, "profile": None, "max_length": 64})
    assert words[:5] == [sys.executable, "-m", "taskedge.cli.main", "cooperate", "join"]
    assert words[5:] == ["--bundle=b", "--class=x", "--class=very y", "--threads=2", "--emulate", "--max-length=64"]
