"""A prepared run: shared data, calibration batches, and equal selection by parts."""

from __future__ import annotations

import pytest
import tiny_task
import torch

from taskedge.errors import InputError
from taskedge.selection.support import Support
from taskedge.training import run as run_module
from taskedge.training.run import prepare_run
from taskedge.training.tune_config import TuneConfig


def run(task, **more):
    fixed = {"model": str(task / "base"), "train": task / "train.csv", "text": ["text"], "label": "label"}
    settings = fixed | {"per_neuron": 1, "batch_size": 8, "calibration": 3, "threads": 1} | more
    made = prepare_run(TuneConfig(**settings), lambda _: None)
    made.load()
    return made


def seen(made, monkeypatch):
    """Return the rows of each calibration batch."""
    sizes = []

    def watch(model, batches, **_):
        sizes.extend(len(batch["input_ids"]) for batch in batches)
        return Support({}, 1)

    monkeypatch.setattr(run_module, "select", watch)
    made.select()
    return sizes


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, [8] * 3),
        ({"micro_batch": 4}, [4] * 6),
        ({"micro_batch": 4, "rule": "gradient"}, [8] * 3),
        ({"micro_batch": 4, "rule": "fisher"}, [8] * 3),
    ],
    ids=str,
)
def test_the_selection_sees_the_same_rows_in_micro_batches(task, monkeypatch, given, sizes):
    assert seen(run(task, **given), monkeypatch) == sizes


def test_parts_select_the_same_as_whole_batches(task):
    whole, parts = run(task).select(), run(task, micro_batch=2).select()
    for name, linear in whole.linears.items():
        assert torch.equal(linear.columns, parts.linears[name].columns)
        torch.testing.assert_close(linear.input_rms, parts.linears[name].input_rms)


def test_a_run_with_other_settings_shares_all_but_what_changes(task):
    made = run(task, eval=task / "eval.csv")
    other = made.with_config({"micro_batch": 2})
    assert other.base is made.base
    assert other.rows is made.rows
    assert other.eval_rows() is made.eval_rows()
    assert other.config.micro_batch == 2
    assert made.config.micro_batch is None
    half = made.with_config({"dtype": "bf16"})
    with pytest.raises(RuntimeError, match="the base is not loaded"):
        half.base  # noqa: B018
    half.load()
    assert half.rows is made.rows
    assert next(half.base.model.parameters()).dtype == torch.bfloat16
    made.release_base()
    with pytest.raises(RuntimeError, match="the base is not loaded"):
        made.base  # noqa: B018
    assert len(made.rows) == 96


@pytest.mark.parametrize("make", [tiny_task.rows, tiny_task.ratings])
def test_cut_texts_are_counted(task, tmp_path, make):
    """In each table once, and with the length of the longest: 60 of 60 rows may lose the word that decides."""
    said = []
    train = tiny_task.table(tmp_path / "t.csv", [(f"{'film ' * 29}{text}", label) for text, label in make(8)])
    held_out = tiny_task.table(tmp_path / "e.csv", make(4))
    made = prepare_run(TuneConfig(model=str(task / "base"), train=train, eval=held_out, max_length=20), said.append)
    made.load()
    made.eval_rows()
    made.with_config({"micro_batch": 2}).load()
    lengths = [len(text.split()) + 29 + 2 for text, _ in make(8)]
    assert [line for line in said if "are cut" in line] == [
        f"8 of 8 rows have more than 20 tokens and are cut at their end: {sum(lengths) - 8 * 20} tokens are lost "
        f"(longest row: {max(lengths)} tokens)"
    ]
    assert all(len(row["input_ids"]) == 20 for row in made.rows)


@pytest.mark.parametrize("length", [1, 2])
def test_a_length_that_leaves_no_text(task, length):
    """The tokenizer puts a token before and a token after each text."""
    made = prepare_run(TuneConfig(model=str(task / "base"), train=task / "train.csv", max_length=length), str)
    with pytest.raises(InputError, match=f"--max-length {length} leaves no token of a text: .* give at least 3"):
        made.load()


def test_the_batch_size_is_that_of_the_task_unless_given(task, tmp_path):
    tiny_task.table(tmp_path / "talk.csv", tiny_task.dialogs(8), ("prompt", "response"))
    fixed = {"model": str(task / "base"), "train": tmp_path / "talk.csv"}
    assert prepare_run(TuneConfig(**fixed), str).config.batch_size == 8
    assert prepare_run(TuneConfig(**fixed, batch_size=16), str).config.batch_size == 16
    with pytest.raises(InputError, match="a micro-batch of 16 rows does not divide a batch of 8"):
        prepare_run(TuneConfig(**fixed, micro_batch=16), str)


def test_a_new_collator_has_the_dtype_of_the_new_base(task, tmp_path):
    """Labels of a regression must have the dtype of the outputs."""
    tiny_task.table(tmp_path / "ratings.csv", tiny_task.ratings(8))
    fixed = {"model": str(task / "base"), "train": tmp_path / "ratings.csv", "threads": 1}
    made = prepare_run(TuneConfig(**fixed), str)
    made.load()
    half = made.with_config({"dtype": "bf16"})
    half.load()
    for one, dtype in ((made, torch.float32), (half, torch.bfloat16)):
        assert one.collate(one.rows[:2])["labels"].dtype == dtype
