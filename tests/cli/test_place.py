"""``taskedge place``: from delta files and a chip file to a plan, a picture and accuracy over faults."""

from __future__ import annotations

import json

import pytest
from chips import CHIP

ONLY_RERAM_HOLDS_THE_BASE = CHIP.replace(
    "capacity_bytes = 20_000", 'capacity_bytes = 20_000\nholds = ["task", "activations", "buffer"]'
)


@pytest.fixture
def chip(here):
    path = here / "chip.toml"
    path.write_text(ONLY_RERAM_HOLDS_THE_BASE)
    return path


def test_a_base_without_tasks(taskedge, task, chip):
    done = taskedge("place", "--model", task / "base", "--memory", chip)
    assert done.code == 0, done.err
    assert "base with 0 tasks: the best of" in done.out
    assert "A model over published numbers of cells, not a measurement of hardware" in done.out
    plan = json.loads(taskedge("place", "--model", task / "base", "--memory", chip, "--json").out)
    assert {row["memory"] for row in plan["tensors"] if row["kind"] == "base"} == {"reram"}
    assert plan["compared"][0]["possible"] is False


def test_a_task_is_placed_beside_its_base_and_measured_over_faults(taskedge, task, tuned, chip, here):
    delta = tuned[0]
    arguments = ("place", "--task", f"mood={delta}", "--task", f"copy={delta}", "--memory", chip)
    done = taskedge(
        *arguments, "--tensors", "--data", task / "eval.csv", "--fault-rate", 0, "--fault-rate", "1/5", "--cell-levels",
        "--bits-per-cell", 2, "--draws", 2, "--out", "plan.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "mood: entries" in done.out
    assert "with weights as loaded" in done.out
    assert "levels of ReRAM, 2 bit" in done.out
    plan = json.loads((here / "plan.json").read_text())
    assert plan["tasks"] == ["mood", "copy"]
    assert not any(row["name"].startswith("classifier") for row in plan["tensors"])  # heads are the tasks' own
    none, many, levels = plan["faults"]["rows"]
    assert (none["wrong_value_cells"], none["changed_values"], len(none["measures"])) == (0, 0, 1)
    assert (len(many["measures"]), len(levels["measures"])) == (2, 2)
    assert abs(many["wrong_value_cells"] / many["value_cells"] - 0.2) < 0.02
    losses = {values["loss"] for row in plan["faults"]["rows"] for values in row["measures"]}
    assert levels["wrong_value_cells"] == 0  # the cells of so small a base are few
    assert len(losses) == 3  # each draw with wrong cells changes what the model computes
    again = taskedge(*arguments, "--out", "plan.json")
    assert again.code == 2
    assert "plan.json exists; give --replace" in again.err


@pytest.mark.slow
def test_a_picture_with_faults(taskedge, task, tuned, chip, here):
    done = taskedge(
        "place", "--task", tuned[0], "--memory", chip, "--data", task / "eval.csv", "--fault-rate", 0.01, "--bit-mask",
        "--protect-mask", "--format", "fixed:2.6", "--draws", 1, "--plot", "chip.png",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (here / "chip.png").stat().st_size > 5000


def test_a_chip_that_is_too_small_names_the_tensor(taskedge, task, here):
    (here / "small.toml").write_text(CHIP.replace("1_000_000", "900").replace("20_000", "500"))
    done = taskedge("place", "--model", task / "base", "--memory", "small.toml")
    assert done.code == 3
    assert "fits into no memory: sram has 500 bytes; reram" in done.err or "does not fit" in done.err


def test_faults_of_the_chip_file_are_listed(taskedge, task, here):
    (here / "bad.toml").write_text(CHIP.replace("cell = ", "cells = "))
    done = taskedge("place", "--model", task / "base", "--memory", "bad.toml")
    assert done.code == 2
    assert "memory 1, cells (line 8): unknown key; did you mean 'cell'?" in done.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "give a --model, or a --task"),
        (("--fault-rate", "0.1"), "measured on labeled data: give it with --data"),
        (("--model", "x", "--data", "d.csv"), "--data needs a --task"),
        (("--task", "a=x", "--data", "d.csv"), "give --fault-rate, or --cell-levels"),
        (("--task", "a=x", "--task", "a=y"), "two tasks have the name 'a'"),
        (("--task", "a=x", "--head", "h", "--head", "i"), "--head is given 2 times for 1 tasks"),
        (("--model", "x", "--protect-mask"), "--protect-mask needs --bit-mask"),
        (("--model", "x", "--format", "float"), "number format 'float'"),
    ],
)
def test_options_that_do_not_go_together(taskedge, chip, more, said):
    done = taskedge("place", "--memory", chip, *more)
    assert done.code == 2
    assert said in done.err


def test_the_help_has_examples(taskedge):
    done = taskedge("place", "--help")
    assert done.code == 0
    assert "taskedge place --task sentiment=a.safetensors" in done.out
