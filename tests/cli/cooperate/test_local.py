"""Whole runs on this machine with real processes, and what an interrupted one leaves."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest
import tiny_task
from local_runs import local_run, on_event, processes_of
from plan_files import plan_of

from taskedge.cli.cooperate import event_display, local
from taskedge.cooperation.fleet.coordinator_lock import hold_coordinator_lock
from taskedge.errors import InputError
from taskedge.planning.fleet_file import load_fleet


@pytest.fixture(scope="module")
def ran(task, tmp_path_factory):
    """A whole run: its folder, how it ended, and the processes that there were at the first task."""
    folder = tmp_path_factory.mktemp("ran")
    seen = folder / "seen"

    def look(event):
        if event["event"] == "task" and not seen.exists():
            seen.write_text("\n".join(processes_of(folder)))

    arguments = local_run(task, folder, "--eval", task / "eval.csv", "--json")
    ended = tiny_task.forked(arguments, on_event(look))
    assert ended.code == 0, ended.err
    return folder, ended, seen.read_text().splitlines()


@pytest.mark.slow
def test_a_run_on_this_machine_gives_its_figures(ran):
    folder, ended, seen = ran
    found = json.loads(ended.out)
    assert found["out"] == str(folder / "task.safetensors")
    assert (found["rounds"], found["version"]) == (4, 4)
    assert found["quality"]["rows"] == 40
    assert sum(" -m taskedge.cli.main cooperate join --bundle=" in line for line in seen) == 2
    assert sum("nats-server" in line for line in seen) == 1


@pytest.mark.slow
def test_a_run_leaves_nothing_but_its_delta(ran):
    folder = ran[0]
    assert processes_of(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ["seen", "task.safetensors"]


@pytest.mark.slow
def test_a_run_shows_a_row_for_each_task(ran):
    lines = ran[1].err.splitlines()
    start = lines.index(event_display.HEADER)
    rows = [line.split() for line in lines[start + 1 :] if line.strip()[0].isdigit()]
    assert sorted((int(row[0]), row[1]) for row in rows) == [(n, f"device-{d}") for n in range(1, 5) for d in (1, 2)]
    assert "chose 124 entries (2.002%) together with 2 devices" in ran[1].err


@pytest.mark.slow
def test_messages_are_counted_by_kind(ran):
    traffic = {(sent["kind"], sent["direction"]): sent for sent in json.loads(ran[1].out)["traffic"]}
    up = {kind for kind, direction in traffic if direction == "up"}
    assert up == {"here", "hello", "statistics", "installed", "gradients", "bye"}
    assert traffic["gradients", "up"]["messages"] == traffic["task", "down"]["messages"] == 8
    assert traffic["gradients", "up"]["bytes"] > 0


@pytest.mark.slow
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


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_a_resumed_run_ends_with_the_same_values(ran, task, here, taskedge):
    def interrupt(event):
        if event["event"] == "round" and event["round"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    ended = tiny_task.forked(local_run(task, here), on_event(interrupt))
    assert ended.code == 130, ended.err
    assert ended.err.endswith("taskedge: interrupted: continue with --resume\n")
    assert processes_of(here) == []
    assert [path.name for path in here.iterdir()] == ["task.safetensors.run"]
    assert "holds an interrupted run" in taskedge(*local_run(task, here)).err
    other = taskedge(*local_run(task, here, "--resume", "--skew"))
    assert "the data, or its split, differs from that of the interrupted run" in other.err
    ended = tiny_task.forked(local_run(task, here, "--resume", "--show-traffic"))
    assert ended.code == 0, ended.err
    assert "resumed after round" in ended.err
    assert [line.split()[0] for line in ended.out.splitlines()][2:4] == ["kind", "hello"]
    assert [path.name for path in here.iterdir()] == ["task.safetensors"]
    assert (here / "task.safetensors").read_bytes() == (ran[0] / "task.safetensors").read_bytes()


@pytest.mark.slow
def test_a_kill_leaves_no_process(task, here):
    def killed():
        def print_status(message):
            if message.startswith("started"):
                os.kill(os.getpid(), signal.SIGKILL)

        local.print_status = print_status

    ended = tiny_task.forked(local_run(task, here), killed)
    assert ended.code == -signal.SIGKILL
    end = time.monotonic() + 20
    while processes_of(here) and time.monotonic() < end:
        time.sleep(0.05)
    assert processes_of(here) == []


def test_on_sigterm_a_run_ends_as_on_ctrl_c(task, here):
    def told():
        def print_status(message):
            if message.startswith("started"):
                os.kill(os.getpid(), signal.SIGTERM)

        local.print_status = print_status

    ended = tiny_task.forked(local_run(task, here), told)
    assert ended.code == 130, ended.err
    assert processes_of(here) == []
    assert list(here.iterdir()) == []  # there was nothing to resume


def test_a_device_that_cannot_start_ends_the_run_with_its_message(taskedge, task, here, monkeypatch):
    words = [sys.executable, "-c", "raise SystemExit('taskedge: no room here')"]
    monkeypatch.setattr(local, "join_command", lambda options: words)
    ended = taskedge(*local_run(task, here))
    assert ended.code == 2
    assert "device-1 ended: no room here" in ended.err
    assert processes_of(here) == []


def test_a_run_in_progress_is_not_disturbed(taskedge, task, here):
    folder = here / "task.safetensors.run"
    folder.mkdir()
    with hold_coordinator_lock(folder):
        for more in ([], ["--force"], ["--resume"]):
            assert "a run is in progress there" in taskedge(*local_run(task, here, *more)).err
    assert folder.exists()


def test_devices_are_named_as_the_fleet_file_names_them(planning):
    described = load_fleet(planning / "fleet.toml")
    assert local.device_names(None, described) == ["d0", "d1", "d2", "d3", "d4"]
    assert local.device_names(2, described) == ["d0", "d1"]
    assert local.device_names(None, None) == ["device-1", "device-2", "device-3", "device-4"]
    with pytest.raises(InputError, match="--devices 6: the fleet file describes 5"):
        local.device_names(6, described)


def test_devices_are_named_as_the_plan_names_them():
    plan = plan_of({"b": [1], "a": [2]}, [["x"], ["y"]], idle=["c"])
    assert local.device_names(None, None, plan) == ["b", "a", "c"]
    assert local.device_names(2, None, plan) == ["b", "a"]
    with pytest.raises(InputError, match="--devices 4: the plan names 3"):
        local.device_names(4, None, plan)


@pytest.mark.slow
def test_a_run_follows_the_plan_that_plan_wrote_and_is_as_slow_as_the_fleet_file_says(taskedge, task, here):
    """From ``taskedge plan --out`` to every round of ``cooperate local --plan --emulate``."""
    device = {"memory_bytes": 4e9, "tokens_per_round": 512, "flops_per_second": 1e8, "utilisation_ratio": 1.0}
    lines = ["[channel]", "bandwidth_hz = 1e6", "[model]", f'path = "{task / "base"}"', "sequence_tokens = 64"]
    for name in ("near", "far"):
        lines += ["[[device]]", f'name = "{name}"', *(f"{key} = {value}" for key, value in device.items())]
        lines += ["batch_sequences = 8", "wired_bits_per_second = 1e6"]
    (here / "fleet.toml").write_text("\n".join(lines))
    planned = taskedge("plan", "--fleet", "fleet.toml", "--solver", "exact", "--out", "plan.json", "--no-compare")
    assert planned.code == 0, planned.err
    parts = {part["device"]: part["blocks"] for part in json.loads((here / "plan.json").read_text())["parts"]}
    seen = here / "seen"

    def keep(event):
        with seen.open("a") as file:
            file.write(json.dumps(event) + "\n")

    more = ["--fleet", here / "fleet.toml", "--plan", here / "plan.json", "--rotation-slack", 1, "--traversal-slack", 1]
    ended = tiny_task.forked(local_run(task, here, *more, "--emulate", "--rounds", 2), on_event(keep))
    assert ended.code == 0, ended.err
    assert "round 1 planned: first round; by the plan file" in ended.err
    tasks = [event for line in seen.read_text().splitlines() if (event := json.loads(line))["event"] == "task"]
    assert sorted((event["round"], event["device"]) for event in tasks) == sorted(
        (round_, device) for round_ in (1, 2) for device in parts
    )
    for event in tasks:
        assert event["blocks"] == [0, *parts[event["device"]]]
        assert event["observed_seconds"] >= event["stated_seconds"] + 8 * event["bytes_up"] / 1e6
        assert event["real_seconds"] > 0


ESCAPING = "../../../../elsewhere/ESCAPED"
FLEET = """
[channel]
bandwidth_hz = 1e6
[[device]]
name = "{name}"
flops_per_second = 1e9
utilisation_ratio = 1.0
memory_bytes = 4e9
tokens_per_round = 1024
wired_bits_per_second = 1e6
"""


@pytest.mark.parametrize("source", ["fleet", "dotted fleet", "plan"])
def test_a_name_of_a_device_does_not_lead_out_of_the_folder(taskedge, task, here, source):
    """Nothing is written under it: neither rows nor the folders on the way."""
    name = "a.b" if source == "dotted fleet" else ESCAPING
    if source == "plan":
        (here / "plan.json").write_text(plan_of({name: [1], "d1": [2]}, [["a"], ["b"]]).model_dump_json())
        more = ["--plan", here / "plan.json"]
    else:
        (here / "fleet.toml").write_text(FLEET.format(name=name))
        more = ["--fleet", here / "fleet.toml"]
    (here / "elsewhere").mkdir()
    out = here / "deep" / "deeper" / "task.safetensors"
    out.parent.mkdir(parents=True)
    ended = taskedge("cooperate", "local", "--model", task / "base", "--train", task / "train.csv", *more, "--out", out)
    assert ended.code == 2
    assert name in ended.err
    assert not list(here.rglob("ESCAPED*"))
    assert not list(out.parent.rglob("*.jsonl"))
