"""A run that is killed at any moment continues and ends with the same bytes; mistakes leave no files."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny_task
from killed_runs import OFTEN, killed_at
from tiny_task import forked, snapshot, tune_config, tuning

from taskedge.cli.main import main
from taskedge.errors import InputError, TrainingDiverged
from taskedge.training import checkpoint, run, tune


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """Return the bytes that an uninterrupted run writes, and its result."""
    folder = tmp_path_factory.mktemp("whole")
    out = folder / "task.safetensors"
    ended = forked([*tuning(task, "--out", out, *OFTEN, "--json")])
    assert ended.code == 0, ended.err
    assert snapshot(folder).keys() == {"task.safetensors"}
    return out.read_bytes(), json.loads(ended.out)


MOMENTS = {
    "as the base is loaded": killed_at(run, "load_base"),
    "before the support is stored": killed_at(tune, "save_support"),
    "before the settings are stored": killed_at(tune, "save_support", after=True),
    "before the first checkpoint": killed_at(checkpoint, "write"),
    "between the files of the first checkpoint": killed_at(checkpoint.Path, "write_text"),
    "between the files of a later checkpoint": killed_at(checkpoint.Path, "write_text", call=2),
    "before a later checkpoint has its name": killed_at(checkpoint.Path, "rename", call=2),
    "after a checkpoint": killed_at(checkpoint, "write", call=2, after=True),
    "as old checkpoints go": killed_at(checkpoint.shutil, "rmtree", call=8),
    "after the last checkpoint": killed_at(tune, "check_unchanged"),
    "before the file has its name": killed_at(tune, "load"),
    "before the folder goes": killed_at(tune.shutil, "rmtree", call=10),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(task, whole, tmp_path, moment):
    out = tmp_path / "task.safetensors"
    arguments = tuning(task, "--out", out, *OFTEN, "--eval", task / "eval.csv")
    assert forked(arguments, MOMENTS[moment]).code == -signal.SIGKILL
    assert not out.exists() or out.read_bytes() == whole[0]
    ended = forked([*arguments, "--resume"])
    assert ended.code == 0, ended.err
    assert out.read_bytes() == whole[0]
    assert snapshot(tmp_path).keys() == {"task.safetensors"}


@pytest.mark.slow
def test_killed_again_and_again(task, whole, tmp_path):
    """The moments are random, and each run continues from the state that the last one left."""
    out, draw = tmp_path / "task.safetensors", random.Random(0)
    arguments = tuning(task, "--out", out, *OFTEN, "--resume")

    def soon():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process as SIGKILL does: none of its code runs
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.05, 0.6))

    for _ in range(6):
        draw.random()
        if forked(arguments, soon).code == 0:
            break
        assert not out.exists() or out.read_bytes() == whole[0]
    else:
        assert forked(arguments).code == 0
    assert out.read_bytes() == whole[0]
    assert snapshot(tmp_path).keys() == {"task.safetensors"}


@pytest.mark.slow
def test_a_process_of_its_own(task, whole, tmp_path):
    """A new interpreter writes the same bytes, and can be killed from outside."""
    out, folder = tmp_path / "task.safetensors", tmp_path / "task.safetensors.run"
    arguments = tuning(task, "--out", out, *OFTEN)
    call = [sys.executable, "-m", "taskedge.cli.main", *arguments]
    process = subprocess.Popen(call, env=tiny_task.environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not checkpoint.latest(folder):
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert forked([*arguments, "--resume"]).code == 0 or out.read_bytes() == whole[0]
    assert out.read_bytes() == whole[0]


def test_the_training_loss_is_that_of_all_steps(task, whole, tmp_path):
    arguments = tuning(task, "--out", tmp_path / "task.safetensors", *OFTEN, "--json")
    forked(arguments, killed_at(checkpoint, "write", call=2, after=True))
    resumed = json.loads(forked([*arguments, "--resume"]).out)
    changing = {"seconds", "seconds_per_step", "cpu_seconds_per_step", "peak_memory", "run_peak_memory", "out"}
    assert {k: v for k, v in resumed.items() if k not in changing} == {
        k: v for k, v in whole[1].items() if k not in changing
    }


def test_two_runs_write_the_same_bytes_and_another_seed_others(task, whole, tmp_path):
    assert main(tuning(task, "--out", tmp_path / "a")) == 0  # other checkpoints, in this process
    assert (tmp_path / "a").read_bytes() == whole[0]
    assert main(tuning(task, "--out", tmp_path / "b", "--seed", "1")) == 0
    assert (tmp_path / "b").read_bytes() != whole[0]


def test_interrupted_by_ctrl_c(task, whole, tmp_path):
    out = tmp_path / "task.safetensors"
    arguments = tuning(task, "--out", out, *OFTEN)
    press = killed_at(checkpoint, "write", call=2, after=True, by=lambda: signal.raise_signal(signal.SIGINT))
    ended = forked(arguments, press)
    assert ended.code == 130
    assert [line for line in ended.err.splitlines() if line.startswith("taskedge:")] == [
        "taskedge: interrupted: continue with --resume"
    ]
    assert "Traceback" not in ended.err
    assert not out.exists()

    refused = forked(arguments)
    assert refused.code == 2
    assert "holds an interrupted run: continue it with --resume, or start anew with --force" in refused.err
    before = snapshot(tmp_path)
    changed = forked([*arguments, "--resume", "--lr", "0.5", "--seed", "7"])
    assert changed.code == 2
    assert "lr=0.01 (now 0.5), seed=0 (now 7)" in changed.err
    assert "batch_size" not in changed.err
    assert snapshot(tmp_path) == before
    assert forked([*arguments, "--force"]).code == 0
    assert out.read_bytes() == whole[0]


def test_interrupted_before_there_was_anything_to_keep(task, tmp_path):
    press = killed_at(run, "load_base", by=lambda: signal.raise_signal(signal.SIGINT))
    ended = forked(tuning(task, "--out", tmp_path / "o"), press)
    assert ended.code == 130
    assert "taskedge: interrupted\n" in ended.err
    assert snapshot(tmp_path) == {}


def test_resume_sees_changed_data(task, tmp_path):
    train = shutil.copy(task / "train.csv", tmp_path / "train.csv")
    arguments = tuning(task, "--train", train, "--out", tmp_path / "o")
    forked(arguments, killed_at(checkpoint, "write"))
    tiny_task.table(train, tiny_task.rows(96, seed=5))
    ended = forked([*arguments, "--resume"])
    assert ended.code == 2
    assert "data_digest" in ended.err


def test_resume_with_nothing_to_resume_runs(task, whole, tmp_path):
    assert main(tuning(task, "--out", tmp_path / "o", "--resume")) == 0
    assert (tmp_path / "o").read_bytes() == whole[0]


def test_a_loss_that_is_no_number(task, tmp_path):
    settings = tune_config(task, tmp_path / "o", lr=1e30, checkpoint_every=1)
    with pytest.raises(TrainingDiverged, match=r"the loss is nan at step 3 \(learning rate .*e\+29\).*checkpoint-1"):
        tune.tune(settings, progress=False, log=str)
    assert checkpoint.latest(tmp_path / "o.run").name == "checkpoint-1"  # that of step 2 gave the nan
    assert not (tmp_path / "o").exists()


def test_a_loss_that_is_no_number_before_any_checkpoint(task, tmp_path):
    with pytest.raises(TrainingDiverged, match="lower learning rate"):
        tune.tune(tune_config(task, tmp_path / "o", lr=1e30), progress=False, log=str)
    assert snapshot(tmp_path) == {}


def small_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("arrange", "kept"), [(small_disk, None), (killed_at(tune, "check_unchanged", by=small_disk), "checkpoint-12")]
)
def test_no_space_left(task, whole, tmp_path, arrange, kept):
    """No space for a checkpoint or for the file: one message, nothing half written, and a run that can be resumed."""
    arguments = tuning(task, "--out", tmp_path / "o", *OFTEN)
    ended = forked(arguments, arrange)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert "cannot be written (File too large)" in ended.err
    assert not (tmp_path / "o").exists()
    newest = checkpoint.latest(tmp_path / "o.run")
    assert (newest and newest.name) == kept
    assert not [name for name in snapshot(tmp_path) if "/." in name or name.startswith(".")]
    assert forked([*arguments, "--resume"]).code == 0
    assert (tmp_path / "o").read_bytes() == whole[0]


def test_a_folder_that_cannot_be_made(task, tmp_path):
    (tmp_path / "o.run").write_text("a file in its place")
    with pytest.raises(InputError, match="cannot be written"):
        tune.tune(tune_config(task, tmp_path / "o"), progress=False, log=str)


def test_the_written_file_is_what_is_measured(task, tmp_path):
    """bf16 rounds values: the reported quality is that of the rounded ones."""
    settings = tune_config(task, tmp_path / "o", values="bf16", eval=task / "eval.csv")
    done = tune.tune(settings, progress=False, log=str)
    assert main(["eval", str(tmp_path / "o"), "--data", str(task / "eval.csv"), "--batch-size", "8"]) == 0
    from taskedge.delta.file import load

    assert all((linear.values == linear.values.bfloat16().float()).all() for linear in load(done.out).linears.values())
