"""``taskedge cooperate``: help and examples of its verbs, their options, and what every fault is answered with."""

from __future__ import annotations

import shlex

import click
import pytest
import tiny_task
from local_runs import files
from pages import ROOT, blocks

from taskedge.cli.cooperate import command as group
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.fleet.device_registry import DeviceRegistry

VERBS = ["local", "init", "enrol", "revoke", "renew", "serve", "join", "status", "stop"]


def parse(line):
    """The line's verb is one of ours, and takes these flags and arguments."""
    words = shlex.split(line, comments=True)
    assert words[:2] == ["taskedge", "cooperate"]
    group.commands[words[2]].make_context(words[2], words[3:])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples_that_parse(taskedge, verb):
    ended = taskedge("cooperate", verb, "--help")
    assert ended.code == 0
    examples = [line.strip() for line in ended.out.splitlines() if line.strip().startswith("taskedge ")]
    assert examples
    for example in examples:
        assert example.split()[2] == verb
        parse(example)
    options = [option for option in group.commands[verb].params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_the_group_lists_its_verbs_with_examples_that_parse(taskedge):
    said = taskedge("cooperate", "--help").out
    assert list(group.commands) == VERBS
    for line in said.splitlines():
        if line.strip().startswith("taskedge cooperate"):
            parse(line)


def test_the_commands_of_the_page_parse():
    page = ROOT / "docs" / "cooperation-commands.md"
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    ours = [line for line in lines if line.startswith("taskedge cooperate")]
    assert {line.split()[2] for line in ours} == set(VERBS)
    for line in ours:
        parse(line)


@pytest.mark.parametrize("verb", ["local", "serve"])
def test_every_setting_is_an_option_with_its_default(taskedge, verb):
    said = " ".join(taskedge("cooperate", verb, "--help").out.split())
    for name in CooperationConfig.model_fields:
        assert f"--{name.replace('_', '-')} " in said or f"--{name.replace('_', '-')} /" in said, name
    for told in ("[default: deft]", "[default: 100]", "[default: 0.03]", "[default: 0.1%]"):
        assert told in said


LOCAL = ["local", "--model", "base", "--train", "train.csv"]
SERVE = ["serve", "--model", "base"]
FAULTS = {
    "an unknown flag": ([*LOCAL, "--round", "3"], "No such option"),
    "no model": (["local", "--train", "train.csv"], "Missing option '--model'"),
    "an unknown mode": ([*LOCAL, "--mode", "dfet"], "'dfet' is not one of 'deft', 'replicate', 'fedavg'"),
    "no rounds": ([*LOCAL, "--rounds", "0"], "rounds=0 must be greater than or equal to 1"),
    "no devices": ([*LOCAL, "--devices", "0"], "Invalid value for '--devices'"),
    "more devices than rows": ([*LOCAL, "--devices", "99"], "96 rows cannot be split among 99 devices"),
    "no data": (["local", "--model", "base", "--train", "trian.csv"], "no file trian.csv; did you mean 'train.csv'?"),
    "no eval data": ([*LOCAL, "--eval", "none.csv"], "no file none.csv"),
    "an output that is there": ([*LOCAL, "--out", "train.csv"], "train.csv exists"),
    "nothing to resume": ([*LOCAL, "--resume"], "task.safetensors.run holds no run to resume"),
    "another run's folder": ([*LOCAL, "--out", "other.st"], "other.st.run holds an interrupted run"),
    "no fleet file": ([*LOCAL, "--fleet", "none.toml"], "fleet file none.toml"),
    "nothing to emulate": ([*LOCAL, "--emulate"], "--emulate: name the fleet file with the devices' speeds"),
    "an unknown solver": ([*LOCAL, "--solver", "exakt"], "did you mean 'exact'?"),
    "numbers": ([*LOCAL, "--label", "number"], "text-regression cannot be trained by several devices"),
    "no fleet's folder": (["status", "--folder", "parts"], "parts/fleet.json: cannot be read"),
    "nothing to stop": (["stop", "--folder", "parts"], "parts: holds no fleet and no run"),
    "no fleet to serve": ([*SERVE, "--folder", "parts", "--class", "a", "--class", "b"], "`taskedge cooperate init`"),
    "nobody enrolled": ([*SERVE, "--folder", "empty", "--class", "a", "--class", "b"], "empty: nobody is enrolled"),
    "no bundle": (["join", "--bundle", "parts", "--model", "base", "--data", "train.csv"], "name the folder that"),
    "everywhere, but where": (["init", "--name", "f", "--listen", "0.0.0.0"], "give with --host how devices reach"),
    "a bad name": (["init", "--name", "a b"], "'a b' cannot be a name here"),
    "no plan": ([*LOCAL, "--plan", "none.json"], "none.json: No such file"),
    "a plan that is none": ([*SERVE, "--plan", "train.csv"], "train.csv is not a plan"),
    "no model to serve": (["serve"], "Missing option '--model'"),
    "a fleet that is there": (["init", "--name", "empty"], "empty: is not empty"),
    "an unknown device": (["revoke", "x", "--folder", "empty"], "unknown device 'x'"),
    "a device's bad name": (["enrol", "coordinator", "--folder", "empty"], "cannot be a name here"),
}


@pytest.fixture(scope="module")
def faulty(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "base").symlink_to(task / "base")
    rows = [(*row, str(place + 0.5)) for place, row in enumerate(tiny_task.rows(96))]
    tiny_task.table(folder / "train.csv", rows, ("text", "label", "number"))
    (folder / "parts").mkdir()
    (folder / "other.st.run").mkdir()
    (folder / "other.st.run" / "settings.json").write_text("{}")
    DeviceRegistry.create(folder / "empty")
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_leaves_nothing(taskedge, faulty, monkeypatch, fault):
    monkeypatch.chdir(faulty)
    before = files(faulty)
    arguments, told = FAULTS[fault]
    ended = taskedge("cooperate", *arguments)
    assert ended.code == 2, ended.err
    assert told in " ".join(ended.err.split())
    assert files(faulty) == before
