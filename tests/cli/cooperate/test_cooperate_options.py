"""The fleet that is meant, and SIGTERM as an interrupt."""

from __future__ import annotations

import os
import signal

import pytest

from taskedge.cli.cooperate.cooperate_options import load_plan, sigterm_as_interrupt, task_spec_from_flags
from taskedge.training.tasks import Columns


def test_which_fleet(taskedge, here, monkeypatch):
    assert "no fleet's folder here" in taskedge("cooperate", "enrol", "d").err
    for name in ("one", "two"):
        assert taskedge("cooperate", "init", "--name", name).code == 0
    assert "several fleets here (one, two): name one with --folder" in taskedge("cooperate", "enrol", "d").err
    monkeypatch.chdir(here / "two")
    assert taskedge("cooperate", "enrol", "d").code == 0
    assert (here / "two" / "devices" / "d").is_dir()


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_is_an_interrupt_even_if_ctrl_c_is_ignored(before):
    kept = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, before)
    try:
        with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == kept[1]
    finally:
        signal.signal(signal.SIGINT, kept[0])


def test_a_task_is_taken_out_of_the_flags(tmp_path):
    flags = {"text": ("a", "b"), "label": "c", "prompt": None, "response": None, "image": None, "rounds": 3}
    flags |= dict.fromkeys(("source", "target", "tokens", "tags"))
    flags |= {"model": "m", "task": None, "classes": ("x", "y"), "max_length": 7}
    spec = task_spec_from_flags(flags, tmp_path)
    assert flags == {"rounds": 3}
    assert (spec.model, spec.data, spec.classes, spec.max_length) == ("m", tmp_path, ("x", "y"), 7)
    assert spec.columns == Columns(text=("a", "b"), label="c")


def test_no_plan_is_none():
    assert load_plan(None) is None
