"""Failures of a base on rows name the rows, the cause and the config's field; faults of this package pass."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny
import torch

from taskedge.errors import InputError
from taskedge.training.generation import pad
from taskedge.training.guard import (
    _PACKAGE,
    RowError,
    check_forward,
    explained,
    guarded,
    in_file,
    is_model_error,
    rows_text,
)


def rows_of(*lengths, token=5):
    return [{"input_ids": [token] * n, "attention_mask": [1] * n, "labels": 0} for n in lengths]


def collate(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    keys = ("input_ids", "attention_mask")
    batch = {key: torch.tensor([row[key] + [0] * (longest - len(row[key])) for row in rows]) for key in keys}
    return batch | {"labels": torch.tensor([row["labels"] for row in rows])}


def test_a_base_that_computes_its_rows_is_left_as_it_was():
    model = tiny.bert().train()
    state = torch.get_rng_state()
    check_forward(model, rows_of(3, 9, 2), collate, 2)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_longest_rows_are_tried_first():
    """The base has 24 positions."""
    with pytest.raises(RowError, match=r"row 4: .* it has 30 tokens, and max_position_embeddings .* is 24: lower"):
        check_forward(tiny.bert(), rows_of(3, 9, 2, 30), collate, 2)


def test_only_rows_that_fail_alone_are_named():
    rows = [*rows_of(3, 3), *rows_of(3, token=400), *rows_of(3), *rows_of(4, token=500)]
    with pytest.raises(RowError, match=r"rows 3, 5: .*IndexError.*token 500 has no embedding.* 40 ") as error:
        check_forward(tiny.bert(), rows, collate, 8)
    assert error.value.numbers == (3, 5)


def test_a_field_that_the_model_misses_is_named():
    model = tiny.t5()
    model.config.decoder_start_token_id = None
    rows = [{"input_ids": [5, 1], "labels": [5, 1]}]
    with pytest.raises(RowError, match=r"set decoder_start_token_id in the base's config.json \(it is None\)"):
        check_forward(model, rows, lambda rows: {key: torch.tensor([r[key] for r in rows]) for key in rows[0]}, 2)


def test_rows_with_another_number_of_end_tokens_are_named():
    class Counting(torch.nn.Linear):
        config = type("Config", (), {"eos_token_id": 7})()

        def forward(self, input_ids):
            if len({row.count(7) for row in input_ids.tolist()}) > 1:
                raise ValueError("All examples must have the same number of <eos> tokens.")
            return input_ids

    rows = [{"input_ids": ids} for ids in ([1, 7], [2, 7], [7, 7], [3, 7])]
    with pytest.raises(RowError, match=r"row 3: .*eos_token_id in its config.json"):
        check_forward(Counting(1, 1), rows, lambda rows: torch.tensor([row["input_ids"] for row in rows]), 4)


def test_outputs_that_are_not_numbers_are_refused():
    model = tiny.bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[0] = torch.nan
    with pytest.raises(RowError, match="outputs are not numbers: a weight in its files is not finite"):
        check_forward(model, rows_of(3), collate, 2)


def test_a_fault_of_this_package_is_not_blamed_on_rows():
    with pytest.raises(ValueError, match="empty"), guarded(tiny.bert(), rows_of(2), [0], collate):
        pad([], 0)
    with pytest.raises(InputError, match=r"^ours$"), guarded(tiny.bert(), rows_of(2), [0], collate):
        raise InputError("ours")


def test_a_failure_elsewhere_is_explained_by_the_check():
    def check():
        raise InputError("row 1: here")

    with pytest.raises(InputError, match="row 1: here"), explained(check):
        torch.zeros(2)[5]
    with pytest.raises(IndexError), explained(lambda: None):
        torch.zeros(2)[5]


def test_the_file_is_named_before_the_rows():
    with pytest.raises(InputError, match=r"^data.csv, rows 1, 2: why$"), in_file(Path("data.csv")):
        raise RowError([1, 2], "why")
    assert rows_text(range(1, 9)) == "rows 1, 2, 3, 4, 5 and 3 more"


def test_a_failure_without_rows_in_flight_passes():
    """A user's selection rule runs inside the block, after the batches."""
    with pytest.raises(ValueError, match="a rule of mine"), guarded(tiny.bert(), rows_of(3), list, collate):
        exec("raise ValueError('a rule of mine')", {})


def test_a_package_with_a_longer_name_is_not_this_one():
    source = compile("def fail():\n    raise ValueError('x')", f"{_PACKAGE.rstrip(os.sep)}_extras{os.sep}x.py", "exec")
    other: dict = {}
    exec(source, other)
    with pytest.raises(ValueError, match="x") as caught:
        other["fail"]()
    assert is_model_error(caught.value)
