"""A run that is killed at any moment continues and ends with the same bytes; mistakes leave no files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_task
from killed_runs import OFTEN, killed_at
from tiny_task import forked, snapshot, tune_config, tuning

from taskedge.cli.main import main
from taskedge.delta.file import load
from taskedge.errors import InputError, TrainingDiverged
from taskedge.io.lock import hold_lock
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


def in_columns(task, out):
    """Return the arguments of a run that trains three columns of each input, after the head."""
    arguments = tuning(task, "--out", out, *OFTEN, "--columns", 3, "--column-score", "pursuit", "--head-warmup")
    arguments += ["--column-draws", 2]
    budget = arguments.index("--budget")
    return arguments[:budget] + arguments[budget + 2 :]


@pytest.mark.slow
def test_columns_with_a_warmed_head_resume_to_the_same_bytes(task, tmp_path):
    whole = tmp_path / "whole.safetensors"
    ended = forked(in_columns(task, whole))
    assert ended.code == 0, ended.err
    assert "trained alone on the features of" in ended.err
    assert "selecting 3 columns of each input" in ended.err
    for moment in ("before the first checkpoint", "after a checkpoint"):
        out = tmp_path / "task.safetensors"
        arguments = in_columns(task, out)
        assert forked(arguments, MOMENTS[moment]).code == -signal.SIGKILL
        assert forked([*arguments, "--resume"]).code == 0
        assert out.read_bytes() == whole.read_bytes()
        out.unlink()
    delta = load(whole)
    assert all(3 * linear.shape[0] <= len(linear) <= 6 * linear.shape[0] for linear in delta.linears.values())
    assert delta.provenance.training["column_draws"] == 2
    assert (delta.provenance.allocation, delta.provenance.training["column_score"]) == ("columns", "pursuit")


@pytest.mark.slow
@pytest.mark.parametrize("coding", ["int8", "int4"])
def test_entries_over_a_coded_base_resume_to_the_same_bytes(task, tmp_path, coding):
    coded = [*OFTEN, "--weight-storage", coding]
    assert forked(tuning(task, "--out", tmp_path / "whole", *coded)).code == 0
    arguments = tuning(task, "--out", tmp_path / "cut", *coded)
    assert forked(arguments, MOMENTS["after a checkpoint"]).code == -signal.SIGKILL
    assert forked([*arguments, "--resume"]).code == 0
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert load(tmp_path / "cut").provenance.training["weight_storage"] == coding


@pytest.mark.slow
def test_a_run_from_before_steps_fell_with_the_entries_of_a_neuron_names_the_setting_that_continues_it(task, tmp_path):
    out = tmp_path / "task.safetensors"
    arguments = [*tuning(task, "--out", out, *OFTEN), "--step-exponent", "0"]
    assert forked(arguments, MOMENTS["after a checkpoint"]).code == -signal.SIGKILL
    stored = tmp_path / "task.safetensors.run" / "settings.json"
    settings = json.loads(stored.read_text())
    for name in ("step_exponent", "head_warmup", "columns", "column_score"):
        del settings[name]
    stored.write_text(json.dumps(settings))
    ended = forked([*tuning(task, "--out", out, *OFTEN), "--resume"])
    assert "other settings: --step-exponent 0.0 (now --step-exponent 0.75): resume it with those" in ended.err
    assert forked([*arguments, "--resume"]).code == 0


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


@pytest.mark.slow
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
    first = tuning(task, "--out", out, *OFTEN)
    arguments = [*first, "--resume"]

    def soon():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process as SIGKILL does: none of its code runs
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.05, 0.6))

    assert forked(first, killed_at(run, "load_base")).code == -signal.SIGKILL
    for _ in range(6):
        draw.random()
        if forked(arguments, soon).code == 0:
            break
        assert not out.exists() or out.read_bytes() == whole[0]
        if out.exists() and not out.with_name("task.safetensors.run").exists():
            break  # all was done before the process ended
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


@pytest.mark.slow
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
    assert "--lr 0.01 (now --lr 0.5), --seed 0 (now --seed 7)" in changed.err
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


def test_a_run_killed_before_it_kept_anything_is_resumed_anew(task, whole, tmp_path):
    out = tmp_path / "task.safetensors"
    forked(tuning(task, "--out", out), killed_at(run, "load_base"))
    ended = forked(tuning(task, "--out", out, *OFTEN, "--resume"))
    assert "the run was killed before it kept anything: it starts anew" in ended.err
    assert out.read_bytes() == whole[0]


@pytest.fixture
def live_run(task, tmp_path):
    """A run in a process of its own that waits after its first checkpoint; it ends when the test ends."""
    out = tmp_path / "task.safetensors"
    wait = killed_at(checkpoint, "write", after=True, by=lambda: time.sleep(600))
    pid = os.fork()
    if pid == 0:
        with open(os.devnull, "w") as null:  # noqa: PTH123
            os.dup2(null.fileno(), 1), os.dup2(null.fileno(), 2)
            wait()
            main(tuning(task, "--out", out, *OFTEN))
            os._exit(1)
    while not checkpoint.latest(tmp_path / "task.safetensors.run"):
        time.sleep(0.01)
    yield pid, out
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.slow
def test_a_live_run_is_not_touched(task, whole, tmp_path, live_run):
    """A second run is refused, whatever it asks for. A kill of the first ends its lock, and the run is resumed."""
    pid, out = live_run
    before = snapshot(tmp_path)
    for more in ([], ["--resume"], ["--force"], ["--epochs", "2", "--seed", "5", "--force"]):
        ended = forked([*tuning(task, "--out", out, *OFTEN), *more])
        assert ended.code == 2
        assert f"task.safetensors.run is in use by process {pid} (started 2" in ended.err
    assert snapshot(tmp_path) == before
    (tmp_path / "link").symlink_to(out)
    through_link = forked(tuning(task, "--out", tmp_path / "link", "--force"))
    assert through_link.code == 2
    assert f"is in use by process {pid}" in through_link.err
    (tmp_path / "link").unlink()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert forked([*tuning(task, "--out", out, *OFTEN), "--resume"]).code == 0
    assert out.read_bytes() == whole[0]
    assert snapshot(tmp_path).keys() == {"task.safetensors"}


def test_two_simultaneous_starts(task, whole, tmp_path):
    out = tmp_path / "task.safetensors"
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(forked, [tuning(task, "--out", out, *OFTEN)] * 2))
    assert sorted(each.code for each in ended) == [0, 2]
    refused = max(ended, key=lambda each: each.code)
    assert "is in use by process" in refused.err or "exists: name another file" in refused.err
    assert out.read_bytes() == whole[0]
    assert snapshot(tmp_path).keys() == {"task.safetensors"}


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


@pytest.mark.slow
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


def test_the_written_file_is_what_is_measured(task, tmp_path):
    """bf16 rounds values: the reported quality is that of the rounded ones."""
    settings = tune_config(task, tmp_path / "o", values="bf16", eval=task / "eval.csv")
    done = tune.tune(settings, progress=False, log=str)
    assert main(["eval", str(tmp_path / "o"), "--data", str(task / "eval.csv"), "--batch-size", "8"]) == 0

    assert all((linear.values == linear.values.bfloat16().float()).all() for linear in load(done.out).linears.values())


def test_no_other_verb_writes_the_same_output(task, tmp_path):
    """`import` and `export` lock the output, not the folder of a run."""
    with hold_lock(tmp_path / "o"), pytest.raises(InputError, match="o is in use by process"):
        tune.tune(tune_config(task, tmp_path / "o"), progress=False, log=str)
    assert snapshot(tmp_path) == {}
