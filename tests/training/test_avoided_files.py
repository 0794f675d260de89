"""Files whose entries a selection avoids: deltas, supports, and what has no entries."""

import pytest
import tiny
import torch

import taskedge as te
from taskedge.errors import InputError, TaskEdgeError
from taskedge.selection.support_file import write_support_file
from taskedge.training.avoided_files import avoided_files, entries_of_file


def test_deltas_and_supports_have_the_same_entries(tmp_path):
    model = tiny.bert()
    support = te.select(model, per_neuron=2, rule="random", seed=3)
    write_support_file(support, tmp_path / "s", model)
    te.save(te.extract(te.install(model, support)), tmp_path / "d")
    ((of_support,), (of_delta,)) = (entries_of_file(tmp_path / name) for name in "sd")
    assert of_support.keys() == of_delta.keys()
    for name, entries in of_support.items():
        assert entries.rows.tolist() == of_delta[name].rows.tolist()
        assert entries.columns.tolist() == of_delta[name].columns.tolist()
    told = []
    assert len(avoided_files([tmp_path / "s", tmp_path / "d"], told.append)["avoid"]) == 2
    assert told[0] == f"avoiding the {support.num_entries:,} entries of {tmp_path / 's'}"


def test_nothing_is_avoided_without_files():
    assert avoided_files([], print) == {}


def test_files_without_entries_are_refused(tmp_path):
    te.save(te.Delta({}, {"head": torch.zeros(2)}), tmp_path / "head")
    with pytest.raises(InputError, match="no entries to avoid"):
        avoided_files([tmp_path / "head"], print)
    (tmp_path / "text").write_text("no delta")
    for name in ("text", "missing"):
        with pytest.raises(TaskEdgeError):
            avoided_files([tmp_path / name], print)


def test_products_beside_entries_are_told(tmp_path):
    model = tiny.bert()
    support = te.select(model, per_neuron=1, rule="random")
    te.save(te.extract(te.install(model, support, form="sparse_plus_low_rank", rank=1)), tmp_path / "d")
    told = []
    avoided_files([tmp_path / "d"], told.append)
    assert told == [
        f"avoiding the {support.num_entries:,} entries of {tmp_path / 'd'}; its low-rank products in 12 linears change "
        "other weights, too"
    ]
