"""``taskedge cooperate``: a fleet's folder, whole runs with real processes, and what a stopped one leaves."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import stat
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import click
import pytest
import tiny_task
from pages import ROOT, blocks

from taskedge.cli.cooperate import command as group
from taskedge.cli.cooperate import local, screen
from taskedge.cli.cooperate.shared import told_to_end
from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.fleet.coordinator_lock import sole
from taskedge.cooperation.fleet.device_registry import Fleet
from taskedge.cooperation.fleet.fleet_status import report
from taskedge.cooperation.transport.nats.server import free_port
from taskedge.errors import InputError
from taskedge.planning.fleet_spec import load_fleet

VERBS = ["local", "init", "enrol", "revoke", "serve", "join", "status", "stop"]


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
    for field in fields(CooperateSettings):
        assert f"--{field.name.replace('_', '-')} " in said or f"--{field.name.replace('_', '-')} /" in said, field.name
    for told in ("[default: deft]", "[default: 100]", "[default: 0.03]", "[default: 0.1%]"):
        assert told in said


LOCAL = ["local", "--model", "base", "--train", "train.csv"]
SERVE = ["serve", "--model", "base"]
FAULTS = {
    "an unknown flag": ([*LOCAL, "--round", "3"], "No such option"),
    "no model": (["local", "--train", "train.csv"], "Missing option '--model'"),
    "an unknown mode": ([*LOCAL, "--mode", "dfet"], "mode='dfet' is unknown; did you mean 'deft'?"),
    "no rounds": ([*LOCAL, "--rounds", "0"], "rounds=0 must be at least 1"),
    "no devices": ([*LOCAL, "--devices", "0"], "Invalid value for '--devices'"),
    "more devices than rows": ([*LOCAL, "--devices", "99"], "96 rows cannot be split among 99 devices"),
    "no data": (["local", "--model", "base", "--train", "trian.csv"], "no file trian.csv; did you mean 'train.csv'?"),
    "no eval data": ([*LOCAL, "--eval", "none.csv"], "no file none.csv"),
    "an output that is there": ([*LOCAL, "--out", "train.csv"], "train.csv exists"),
    "nothing to resume": ([*LOCAL, "--resume"], "task.safetensors.run holds no run to resume"),
    "another run's folder": ([*LOCAL, "--out", "other.st"], "other.st.run holds an interrupted run"),
    "no fleet file": ([*LOCAL, "--fleet", "none.toml"], "fleet file none.toml"),
    "nothing to emulate": ([*LOCAL, "--emulate"], "--emulate: name the fleet file that says how slow"),
    "an unknown solver": ([*LOCAL, "--solver", "exakt"], "did you mean 'exact'?"),
    "numbers": ([*LOCAL, "--label", "number"], "text-regression cannot be trained by several devices"),
    "no fleet's folder": (["status", "--folder", "parts"], "parts/fleet.json: cannot be read"),
    "nothing to stop": (["stop", "--folder", "parts"], "parts: holds no fleet and no run"),
    "no fleet to serve": ([*SERVE, "--folder", "parts", "--class", "a", "--class", "b"], "`taskedge cooperate init`"),
    "nobody enrolled": ([*SERVE, "--folder", "empty", "--class", "a", "--class", "b"], "empty: nobody is enrolled"),
    "no bundle": (["join", "--bundle", "parts", "--model", "base", "--data", "train.csv"], "name the folder that"),
    "everywhere, but where": (["init", "--name", "f", "--listen", "0.0.0.0"], "say with --host how devices reach"),
    "a bad name": (["init", "--name", "a b"], "'a b' cannot be a name here"),
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
    Fleet.create(folder / "empty")
    return folder


def files(folder):
    """All but what processes hold locks on."""
    found = tiny_task.snapshot(folder)
    return {name: content for name, content in found.items() if not name.endswith((".lock", ".coordinator"))}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_is_said_and_leaves_nothing(taskedge, faulty, monkeypatch, fault):
    monkeypatch.chdir(faulty)
    before = files(faulty)
    arguments, told = FAULTS[fault]
    ended = taskedge("cooperate", *arguments)
    assert ended.code == 2, ended.err
    assert told in " ".join(ended.err.split())
    assert files(faulty) == before


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_init_enrol_and_revoke(taskedge, here):
    ended = taskedge("cooperate", "init", "--name", "plant-7", "--host", "10.0.0.5", "--listen", "0.0.0.0")
    assert ended.code == 0
    assert "next: taskedge cooperate enrol" in ended.out
    assert mode(here / "plant-7") == 0o700
    assert mode(here / "plant-7" / "authority.key") == mode(here / "plant-7" / "server.key") == 0o600
    ended = taskedge("cooperate", "enrol", "jetson-1")
    assert ended.code == 0
    bundle = here / "plant-7" / "devices" / "jetson-1"
    assert ended.out.startswith("plant-7/devices/jetson-1: the keys of jetson-1\n")
    assert "taskedge cooperate join --bundle jetson-1 " in ended.out
    assert (mode(bundle), mode(bundle / "key.pem")) == (0o700, 0o600)
    assert json.loads((bundle / "fleet.json").read_text())["server"] == "tls://10.0.0.5:4222"
    assert "jetson-1' is enrolled already" in taskedge("cooperate", "enrol", "jetson-1", "--folder", "plant-7").err
    status = json.loads(taskedge("cooperate", "status", "--json").out)
    assert status["fleet"] == "plant-7"
    assert status["server"] == {"address": "0.0.0.0:4222", "runs": False}
    assert [(device["name"], device["present"]) for device in status["devices"]] == [("jetson-1", None)]
    assert status["run"] is None
    ended = taskedge("cooperate", "revoke", "jetson-1")
    assert "jetson-1 is out of fleet plant-7: the server does not run now" in ended.out
    assert not bundle.exists()
    assert Fleet.open(here / "plant-7").devices == {}
    assert "no devices" in taskedge("cooperate", "status").out


def test_which_fleet(taskedge, here, monkeypatch):
    assert "no fleet's folder here" in taskedge("cooperate", "enrol", "d").err
    for name in ("one", "two"):
        assert taskedge("cooperate", "init", "--name", name).code == 0
    assert "several fleets here (one, two): name one with --folder" in taskedge("cooperate", "enrol", "d").err
    monkeypatch.chdir(here / "two")
    assert taskedge("cooperate", "enrol", "d").code == 0
    assert (here / "two" / "devices" / "d").is_dir()


def test_the_unit_joins_as_it_was_told(taskedge, here, task):
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


def processes_of(folder):
    """Command lines of all processes that name the folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(place.name) != os.getpid() and any(str(folder).encode() in word for word in words):
            found.append(b" ".join(words).decode())
    return found


def running(task, folder, *more):
    """A run of 4 short rounds whose values do not follow the machine's clock."""
    fixed = ["--model", task / "base", "--train", task / "train.csv", "--devices", 2, "--threads", 1]
    short = ["--budget", "2%", "--rounds", 4, "--batch-size", 8, "--no-follow-pace", "--least-deadline", 60]
    return list(map(str, ["cooperate", "local", *fixed, *short, "--out", folder / "task.safetensors", *more]))


def on_event(act, shows=screen.TaskTable):
    """For ``forked``: calls ``act`` with every event that is shown."""

    def before():
        show = shows.__call__

        def shown(self, event):
            show(self, event)
            act(event)

        shows.__call__ = shown

    return before


@pytest.fixture(scope="module")
def ran(task, tmp_path_factory):
    """A whole run: its folder, how it ended, and the processes that there were at the first task."""
    folder = tmp_path_factory.mktemp("ran")
    seen = folder / "seen"

    def look(event):
        if event["event"] == "task" and not seen.exists():
            seen.write_text("\n".join(processes_of(folder)))

    arguments = running(task, folder, "--eval", task / "eval.csv", "--json")
    ended = tiny_task.forked(arguments, on_event(look))
    assert ended.code == 0, ended.err
    return folder, ended, seen.read_text().splitlines()


def test_a_run_on_this_machine(ran):
    folder, ended, seen = ran
    found = json.loads(ended.out)
    assert found["out"] == str(folder / "task.safetensors")
    assert (found["rounds"], found["version"]) == (4, 4)
    assert found["quality"]["rows"] == 40
    assert sum(" -m taskedge.cli.main cooperate join --bundle=" in line for line in seen) == 2
    assert sum("nats-server" in line for line in seen) == 1


def test_a_run_leaves_nothing_but_its_delta(ran):
    folder = ran[0]
    assert processes_of(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ["seen", "task.safetensors"]


def test_a_run_shows_a_row_for_each_task(ran):
    lines = ran[1].err.splitlines()
    start = lines.index(screen.HEADER)
    rows = [line.split() for line in lines[start + 1 :] if line.strip()[0].isdigit()]
    assert sorted((int(row[0]), row[1]) for row in rows) == [(n, f"device-{d}") for n in range(1, 5) for d in (1, 2)]
    assert "chose 124 entries (2.002%) together with 2 devices" in ran[1].err


def test_what_is_sent_is_told_by_kind(ran):
    traffic = {(sent["kind"], sent["direction"]): sent for sent in json.loads(ran[1].out)["traffic"]}
    up = {kind for kind, direction in traffic if direction == "up"}
    assert up == {"here", "hello", "statistics", "installed", "gradients", "bye"}
    assert traffic["gradients", "up"]["messages"] == traffic["task", "down"]["messages"] == 8
    assert traffic["gradients", "up"]["bytes"] > 0


def test_its_delta_is_one_like_those_of_tune(ran, taskedge, task, here):
    delta = ran[0] / "task.safetensors"
    ended = taskedge("eval", delta, "--data", task / "eval.csv", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["accuracy"] == pytest.approx(json.loads(ran[1].out)["quality"]["accuracy"])
    about = json.loads(taskedge("info", delta, "--json").out)
    assert about["provenance"]["labels"] == ["neg", "pos"]
    training = about["provenance"]["training"]
    assert (training["mode"], training["rounds"], training["devices"]) == ("deft", 4, 2)
    assert (training["text"], training["label"], training["max_length"]) == (["text"], "label", 64)
    assert taskedge("predict", delta, "--data", task / "eval.csv").code == 0


def test_ctrl_c_leaves_no_process_and_a_run_that_goes_on_to_the_same_values(ran, task, here, taskedge):
    def interrupt(event):
        if event["event"] == "round" and event["round"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    ended = tiny_task.forked(running(task, here), on_event(interrupt))
    assert ended.code == 130, ended.err
    assert ended.err.endswith("taskedge: interrupted: go on with --resume\n")
    assert processes_of(here) == []
    assert [path.name for path in here.iterdir()] == ["task.safetensors.run"]
    assert "holds an interrupted run" in taskedge(*running(task, here)).err
    other = taskedge(*running(task, here, "--resume", "--skew"))
    assert "the data, or how it is split, is not what it was" in other.err
    ended = tiny_task.forked(running(task, here, "--resume", "--show-traffic"))
    assert ended.code == 0, ended.err
    assert "goes on after round" in ended.err
    assert [line.split()[0] for line in ended.out.splitlines()][2:4] == ["kind", "hello"]
    assert [path.name for path in here.iterdir()] == ["task.safetensors"]
    assert (here / "task.safetensors").read_bytes() == (ran[0] / "task.safetensors").read_bytes()


def test_emulated_devices_are_as_slow_as_the_fleet_file_says(task, here):
    slow = {"memory_bytes": 4e9, "tokens_per_round": 512, "flops_per_second": 1e8, "utilisation_ratio": 1.0}
    lines = ["[channel]", "bandwidth_hz = 1e6", "[model]", 'path = "base"', "sequence_tokens = 64"]
    for name in ("near", "far"):
        lines += ["[[device]]", f'name = "{name}"', *(f"{key} = {value}" for key, value in slow.items())]
        lines += ["batch_sequences = 8", "wired_bits_per_second = 1e6"]
    (here / "fleet.toml").write_text("\n".join(lines))
    seen = here / "seen"

    def keep(event):
        with seen.open("a") as file:
            file.write(json.dumps(event) + "\n")

    more = ["--fleet", here / "fleet.toml", "--emulate", "--solver", "exact", "--rounds", 2]
    ended = tiny_task.forked(running(task, here, *more), on_event(keep))
    assert ended.code == 0, ended.err
    tasks = [event for line in seen.read_text().splitlines() if (event := json.loads(line))["event"] == "task"]
    assert sorted((event["round"], event["device"]) for event in tasks) == [
        (1, "far"), (1, "near"), (2, "far"), (2, "near"),
    ]  # fmt: skip
    for event in tasks:
        assert event["observed_seconds"] >= event["stated_seconds"] + 8 * event["bytes_up"] / 1e6
        assert event["real_seconds"] > 0


def test_a_kill_leaves_no_process(task, here):
    def killed():
        def note(message):
            if message.startswith("started"):
                os.kill(os.getpid(), signal.SIGKILL)

        local.note = note

    ended = tiny_task.forked(running(task, here), killed)
    assert ended.code == -signal.SIGKILL
    end = time.monotonic() + 20
    while processes_of(here) and time.monotonic() < end:
        time.sleep(0.05)
    assert processes_of(here) == []


def test_told_to_end_a_run_ends_as_with_ctrl_c(task, here):
    def told():
        def note(message):
            if message.startswith("started"):
                os.kill(os.getpid(), signal.SIGTERM)

        local.note = note

    ended = tiny_task.forked(running(task, here), told)
    assert ended.code == 130, ended.err
    assert processes_of(here) == []
    assert list(here.iterdir()) == []  # nothing had begun that could go on


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_to_be_told_to_end_is_an_interrupt_also_where_ctrl_c_is_ignored(before):
    kept = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, before)
    try:
        with pytest.raises(KeyboardInterrupt), told_to_end():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == kept[1]
    finally:
        signal.signal(signal.SIGINT, kept[0])


def test_a_device_that_cannot_begin_ends_the_run_with_its_words(taskedge, task, here, monkeypatch):
    words = [sys.executable, "-c", "raise SystemExit('taskedge: no room here')"]
    monkeypatch.setattr(local, "joining", lambda options: words)
    ended = taskedge(*running(task, here))
    assert ended.code == 2
    assert "device-1 ended: no room here" in ended.err
    assert processes_of(here) == []


def test_serve_and_join_over_one_server_and_two_coordinators(taskedge, task, here):
    """The first coordinator is stopped; the second finds the server and the devices where they were."""
    assert taskedge("cooperate", "init", "--name", "plant", "--port", free_port()).code == 0
    fleet = Fleet.open(here / "plant")
    tiny_task.table(here / "one.csv", [("good film", "pos"), ("fine plot", "pos")] * 8)
    data = {"d1": task / "train.csv", "d2": here / "one.csv"}

    def join(name):
        bundle = here / "plant" / "devices" / name
        about = ["--model", task / "base", "--data", data[name], "--class", "neg", "--class", "pos", "--threads", 1]
        return tiny_task.forked(list(map(str, ["cooperate", "join", "--bundle", bundle, *about])))

    def serve(*more):
        about = ["--model", task / "base", "--budget", "2%", "--devices", 2, "--rounds", 4, "--batch-size", 8]
        return list(map(str, ["cooperate", "serve", *about, *more]))

    def wait(event):
        """Until it is told to end."""
        if event["event"] == "round" and event["round"] == 2:
            (here / "aside").write_text(json.dumps(report(here / "plant")))
            (here / "aside").rename(here / "seen")
            end = time.monotonic() + 60
            while not asyncio.current_task().cancelling() and time.monotonic() < end:
                time.sleep(0.02)

    classes = ["--class", "neg", "--class", "pos"]
    with ThreadPoolExecutor(3) as pool:
        try:
            for name in data:
                assert taskedge("cooperate", "enrol", name).code == 0
            joined = [pool.submit(join, name) for name in data]
            serving = pool.submit(tiny_task.forked, serve(*classes), on_event(wait, screen.RoundLines))
            while not (here / "seen").exists() and not serving.done():
                time.sleep(0.05)
            stopped = taskedge("cooperate", "stop", "--keep-server")
            assert re.search(r"coordinator \(process \d+\) has ended: its run goes on with --resume", stopped.out)
            ended = serving.result()
            assert ended.code == 130, ended.err
            assert "round 2/4: 2 of 2 devices" in ended.err
            assert ended.err.endswith("interrupted: go on with --resume\n")
            pid = fleet.server.pid
            assert pid is not None
            seen = json.loads((here / "seen").read_text())
            assert seen["coordinator_runs"]
            assert [(device["name"], device["present"]) for device in seen["devices"]] == [("d1", True), ("d2", True)]
            assert (seen["run"]["state"], seen["run"]["round"], seen["run"]["rounds"]) == ("goes on", 2, 4)
            assert json.loads(taskedge("cooperate", "status", "--json").out)["run"]["state"] == "interrupted"
            assert "plant/run holds an interrupted run" in taskedge(*serve(*classes)).err
            with sole(here / "plant"):
                assert "another coordinator works with this folder" in taskedge(*serve(*classes, "--resume")).err
            ended = tiny_task.forked(serve(*classes, "--resume"))
            assert ended.code == 0, ended.err
            assert fleet.server.pid == pid
            for one in joined:
                assert one.result(60).code == 0, one.result().err
                assert one.result().err.endswith("the run is done\n")
            stopped = taskedge("cooperate", "stop", "--folder", "plant")
            assert stopped.out.splitlines()[0] == "plant: no coordinator runs"
            assert f"the server (process {pid}) has ended" in stopped.out
            assert fleet.server.pid is None
        finally:
            fleet.server.stop()
    assert "no server runs" in taskedge("cooperate", "stop", "--folder", "plant").out
    assert not (here / "plant" / "run").exists()
    told = taskedge("cooperate", "status").out
    assert "run done: round 4 of 4, version 4, loss" in told
    assert taskedge("eval", "task.safetensors", "--data", task / "eval.csv").code == 0


def test_a_run_that_goes_on_is_not_disturbed(taskedge, task, here):
    folder = here / "task.safetensors.run"
    folder.mkdir()
    with sole(folder):
        for more in ([], ["--force"], ["--resume"]):
            assert "a run goes on there" in taskedge(*running(task, here, *more)).err
    assert folder.exists()


def test_devices_are_named_as_the_fleet_file_names_them(planning):
    described = load_fleet(planning / "fleet.toml")
    assert local._names(None, described) == ["d0", "d1", "d2", "d3", "d4"]
    assert local._names(2, described) == ["d0", "d1"]
    assert local._names(None, None) == ["device-1", "device-2", "device-3", "device-4"]
    with pytest.raises(InputError, match="--devices 6: the fleet file describes 5"):
        local._names(6, described)


def test_rows_say_what_was_trained_and_why_it_was_not_used():
    event = {"event": "task", "round": 3, "device": "d1", "blocks": [0, 1, 2, 3, 6], "result": "accepted", "why": ""}
    event |= {"bytes_down": 12345, "bytes_up": 678, "predicted_seconds": 1.25, "observed_seconds": 1.5, "loss": 0.5}
    event |= {"stated_seconds": 1.0, "real_seconds": None}
    assert screen.row(event).split() == ["3", "d1", "head", "1-3", "6", "12,345", "678", "1.25", "1.50", "0.5000"]
    late = screen.row(event | {"result": "late", "why": "no answer in time", "loss": None})
    assert late.endswith("       -  late no answer in time")
    assert len(screen.row(event)) == len(screen.row(event | {"real_seconds": 0.4})) == len(screen.HEADER)
    assert screen.row(event | {"real_seconds": 1.2}).endswith("  the real step took 1.20 s, 1.00 s were to emulate")
