"""A run with a support file ends with the same bytes as a run that selects; all that selects can be stored."""

from __future__ import annotations

import pytest
from tiny_task import tune_config

from taskedge.errors import InputError
from taskedge.selection.support_file import found_on
from taskedge.training.select_run import select_to_file
from taskedge.training.tune import tune
from taskedge.training.tune_config import TuneConfig

WAYS = {
    "the default rule": {},
    "columns, a warmed head": {"columns": 3, "column_score": "pursuit", "head_warmup": True, "budget": None},
    "gradients": {"rule": "gradient", "allocation": "global"},
    "low rank and norms": {"rule": "spt", "rank": 1, "budget": "10%"},
    "no data": {"rule": "magnitude", "allocation": "2:4", "budget": None},
    "one block": {"depth": 1},
    "a dense run": {"rule": "change", "change_epochs": 0.25, "columns": 3, "column_score": "gradient", "budget": None},
}


def without_none(settings):
    return {name: value for name, value in settings.items() if value is not None}


@pytest.mark.parametrize("way", WAYS)
def test_the_file_gives_the_bytes_of_a_selection(task, tmp_path, way):
    settings = WAYS[way]
    fixed = {"model": str(task / "base"), "train": task / "train.csv", "text": ["text"], "label": "label"}
    fixed |= {"batch_size": 8, "threads": 1}
    selecting = without_none({"budget": "2%"} | settings)
    path = tmp_path / "support.safetensors"
    result = select_to_file(TuneConfig(**fixed, **selecting), path, log=str)
    training = fixed | {"lr": 1e-2, "epochs": 0.25, "head_warmup": settings.get("head_warmup", False)}
    whole, given = tmp_path / "whole.safetensors", tmp_path / "given.safetensors"
    tune(TuneConfig(**(training | selecting), out=whole), progress=False, log=str)
    ended = tune(TuneConfig(**training, support_file=path, out=given), progress=False, log=str)
    assert ended.entries == result.entries
    assert given.read_bytes() == whole.read_bytes()


def test_the_file_names_base_task_and_labels(task, tmp_path):
    path = tmp_path / "support.safetensors"
    result = select_to_file(tune_config(task, tmp_path / "unused"), path, log=str)
    found = found_on(path)
    assert (found["base"], found["task"], found["labels"]) == (
        str(task / "base"),
        "text-classification",
        ["neg", "pos"],
    )
    assert result.as_json()["file_bytes"] == path.stat().st_size
    assert set(tmp_path.iterdir()) == {path}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "lora", "budget": None}, "the form 'lora' selects nothing; those that do: sparse, sparse_lora"),
        ({"support_file": "s.safetensors", "budget": None}, "holds a support already: leave out --support-file"),
        ({"from_delta": "d.safetensors", "budget": None}, "has its entries already: leave out --from-delta"),
    ],
)
def test_a_run_without_a_selection_is_refused(task, tmp_path, changes, message):
    config = TuneConfig(model=str(task / "base"), train=task / "train.csv", **without_none(changes))
    with pytest.raises(InputError, match=message):
        select_to_file(config, tmp_path / "s", log=str)
    assert not list(tmp_path.iterdir())
