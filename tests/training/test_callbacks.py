"""Hooks run in order, and the timer, the progress line and TensorBoard show what the loop did."""

import time

import pytest
import tiny
import torch

import taskedge as te
from taskedge.errors import TrainingDiverged
from taskedge.training import callbacks
from taskedge.training.callbacks import Callback, ProgressLine, StepTimer, TensorBoardLog, TrainState
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

CONFIG = TrainerConfig(epochs=1, batch_size=4, accumulate=2, lr=1e-2)


def rows(count=14):
    draw = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(1, tiny.VOCABULARY, (6,), generator=draw), "labels": index % tiny.LABELS}
        for index in range(count)
    ]


def collate(examples):
    return {
        "input_ids": torch.stack([row["input_ids"] for row in examples]),
        "labels": torch.tensor([row["labels"] for row in examples]),
    }


def model():
    made = tiny.bert()
    return te.install(made, te.select(made, rule="magnitude", per_neuron=1))


def run(folder, *callbacks, config=CONFIG):
    return train(model(), rows(), collate, config, folder, progress=False, callbacks=callbacks)


class Recorder(Callback):
    def __init__(self):
        self.events = []

    def on_train_begin(self, state):
        self.events.append(("begin", state.step, state.max_steps))

    def on_step_begin(self, state):
        self.events.append(("step", state.step))

    def on_pass_end(self, state):
        self.events.append(("pass", state.step))

    def on_gradients(self, state):
        has_gradients = any(p.grad is not None for p in state.model.parameters())
        self.events.append(("gradients", state.step, has_gradients))

    def on_step_end(self, state):
        has_gradients = any(p.grad is not None for p in state.model.parameters())
        self.events.append(("end of step", state.step, has_gradients))

    def on_log(self, state):
        self.events.append(("log", state.log[-1]["step"]))

    def on_train_end(self):
        self.events.append(("end",))


def test_hooks_in_order(tmp_path):
    """14 rows in batches of 4, two a step: the second step has two batches, the last one of two rows."""
    recorder = Recorder()
    result = run(tmp_path, recorder)
    assert recorder.events == [
        ("begin", 0, 2),
        ("step", 0), ("pass", 0), ("gradients", 0, True), ("end of step", 1, False),
        ("step", 1), ("pass", 1), ("gradients", 1, True), ("end of step", 2, False),
        ("log", 2),
        ("end",),
    ]  # fmt: skip
    assert [entry.keys() for entry in result.log] == [{"loss", "grad_norm", "learning_rate", "epoch", "step"}]
    assert result.log[0]["loss"] == pytest.approx(result.loss)
    assert result.log[0]["epoch"] == 1.0


def test_the_end_comes_after_an_error_too(tmp_path):
    class Broken(Callback):
        def on_step_begin(self, state):
            state.model.classifier.register_forward_hook(lambda module, args, output: output * torch.nan)

    recorder = Recorder()
    with pytest.raises(TrainingDiverged):
        run(tmp_path, Broken(), recorder)
    assert recorder.events[-1] == ("end",)


def test_the_timer_measures_steps(tmp_path):
    class Slow(Callback):
        def on_step_begin(self, state):
            time.sleep(0.05)

    timer = StepTimer()
    assert (timer.wall_seconds, timer.cpu_seconds) == (0, 0)
    result = run(tmp_path, timer, Slow())  # the timer runs first, so it sees the sleep
    assert timer.wall_seconds > 0.05
    assert timer.wall_seconds > timer.cpu_seconds > 0
    assert result.seconds > 2 * result.seconds_per_step > 0


def test_the_progress_in_a_log_is_whole_lines(capsys, monkeypatch):
    monkeypatch.setattr("taskedge.reporting.progress.SECONDS_BETWEEN_LINES", 0.0)
    state = TrainState(model(), None, max_steps=4, step=1)
    line = ProgressLine()
    line.on_train_begin(state)
    state.log.append({"loss": 0.25})
    line.on_log(state)
    line.on_step_end(state)
    line.on_train_end()
    shown = capsys.readouterr().err
    assert shown.startswith("training: 2 of 4 steps")
    assert shown.endswith("loss 0.250\n")
    assert "\r" not in shown


def test_a_progress_line_that_never_began_ends_quietly(capsys):
    ProgressLine().on_train_end()
    assert capsys.readouterr().err == ""


def test_tensorboard(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, log_dir):
            written.append(log_dir)

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def flush(self):
            written.append("flush")

        def close(self):
            written.append("close")

    monkeypatch.setattr(callbacks, "_summary_writer", Writer)
    log = TensorBoardLog(tmp_path)
    run(tmp_path, log)
    names = ("loss", "grad_norm", "learning_rate", "epoch")
    scalars = [(f"train/{name}", 2) for name in names]
    assert written == [str(tmp_path / "runs"), *scalars, "flush", "close"]
