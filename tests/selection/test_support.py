"""A support is validated when it is created, and survives the disk."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.errors import InputError
from taskedge.io.container import serialize
from taskedge.selection.support import (
    SUPPORT,
    LayerSupport,
    Support,
    load_support,
    save_support,
    support_content,
    support_from_content,
)


def linear(rows, columns, shape=(3, 4)):
    return LayerSupport(
        shape, torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64), shared_input="x"
    )


def test_rows_and_columns_of_flat_indices():
    made = LayerSupport.from_flat((3, 4), torch.tensor([1, 4, 7, 11]), "x")
    assert made.rows.tolist() == [0, 1, 1, 2]
    assert made.columns.tolist() == [1, 0, 3, 3]
    assert made.flat.tolist() == [1, 4, 7, 11]
    assert made.distinct_columns.tolist() == [0, 1, 3]
    assert len(made) == 4


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([0, 1], [0], "2 rows and 1 columns"),
        ([3], [0], r"outside its \[3, 4\] weight"),
        ([0], [4], "outside"),
        ([-1], [0], "outside"),
        ([0], [-1], "outside"),
        ([1, 0], [0, 0], "not sorted"),
        ([0, 0], [2, 1], "not sorted"),
        ([0, 0], [1, 1], "twice"),
    ],
)
def test_inconsistent_entries_are_refused(rows, columns, message):
    with pytest.raises(InputError, match=message):
        linear(rows, columns)


def test_an_empty_one_is_sound():
    assert len(linear([], [])) == 0
    assert linear([], []).distinct_columns.tolist() == []


def test_a_support_counts_and_prints():
    support = Support({"a": linear([0, 1], [1, 1]), "b": linear([0, 1], [2, 3])}, 4000, "taskedge", "per_neuron")
    assert support.num_entries == 4
    assert support.share == 0.001
    assert str(support) == (
        "4 entries (0.1000% of 4,000 parameters) in 2 linears, 1-2 distinct columns each, "
        "by rule 'taskedge' and allocation 'per_neuron'"
    )
    assert "0 entries" in str(Support({}, 10))
    alone = Support({"a": linear([0], [1])}, 1000, "taskedge", "per_neuron")
    assert str(alone).startswith("1 entry (0.1000% of 1,000 parameters) in 1 linear, 1 distinct column each, by")


def test_all_that_trains_counts_towards_the_share():
    support = Support(
        {"a": linear([0, 1], [1, 1])},
        1000,
        low_rank={"b": 2},
        num_low_rank_parameters=14,
        full_parameters=("n.weight", "n.bias"),
        num_full_parameters=8,
    )
    assert (support.num_entries, support.parameters, support.share) == (2, 24, 0.024)
    assert str(support).startswith(
        "2 entries + 14 in 1 low-rank module + 8 in 2 biases and norms (2.4000% of 1,000 parameters) in 1 linear, 1 "
    )


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def support():
    return Support(
        linears={
            "a": LayerSupport((2, 3), torch.tensor([0, 1]), torch.tensor([2, 0]), "a", torch.tensor([1.0, 2.0, 3.0])),
            "b": LayerSupport((4, 3), torch.tensor([3]), torch.tensor([1]), "a"),
        },
        model_parameters=100,
        rule="random",
        allocation="global",
        budget="3%",
        settings={"seed": 7},
    )


def test_round_trip(support, tmp_path):
    save_support(support, tmp_path / "support")
    read = load_support(tmp_path / "support")
    assert str(read) == str(support)
    assert (read.rule, read.allocation, read.budget, read.settings) == ("random", "global", "3%", {"seed": 7})
    for name, linear in support.linears.items():
        other = read.linears[name]
        assert other.shape == linear.shape
        assert other.shared_input == linear.shared_input
        assert torch.equal(other.rows, linear.rows)
        assert torch.equal(other.columns, linear.columns)
    assert torch.equal(read.linears["a"].input_rms, torch.tensor([1.0, 2.0, 3.0]))
    assert read.linears["b"].input_rms is None


def test_low_rank_modules_biases_and_norms_are_stored_too(support, tmp_path):
    more = replace(
        support,
        low_rank={"c": 8},
        num_low_rank_parameters=48,
        full_parameters=("n.weight", "n.bias"),
        num_full_parameters=6,
    )
    save_support(more, tmp_path / "support")
    read = load_support(tmp_path / "support")
    assert (read.low_rank, read.full_parameters) == ({"c": 8}, ("n.weight", "n.bias"))
    assert (read.parameters, read.share) == (57, 0.57)
    assert read.settings == more.settings


@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=4),
    data=st.data(),
)
def test_columns_of_every_row_go_round_and_are_stored_once(tmp_path, shapes, data):
    linears = {}
    for index, (out, inputs) in enumerate(shapes):
        columns = data.draw(st.sets(st.integers(0, inputs - 1), min_size=1))
        flat = [row * inputs + column for row in range(out) for column in sorted(columns)]
        if data.draw(st.booleans()):
            flat = sorted(data.draw(st.sets(st.integers(0, out * inputs - 1))))
        linears[str(index)] = LayerSupport.from_flat((out, inputs), torch.tensor(flat, dtype=torch.int64), "0")
    save_support(Support(linears, 100), tmp_path / "support")
    read = load_support(tmp_path / "support")
    for name, linear in linears.items():
        assert torch.equal(read.linears[name].rows, linear.rows)
        assert torch.equal(read.linears[name].columns, linear.columns)
    tensors = SUPPORT.read(tmp_path / "support").tensors
    lists = [tuple(t.tolist()) for name, t in tensors.items() if name.startswith("columns/")]
    assert len(lists) == len(set(lists))
    in_every_row = [linear.columns_of_every_row for linear in linears.values()]
    assert set(lists) == {tuple(columns.tolist()) for columns in in_every_row if columns is not None}


def test_a_file_of_format_2_is_read(support, tmp_path):
    path = tmp_path / "support"
    header, tensors = support_content(support)
    replace(SUPPORT, format="taskedge-support/2").write(path, header, tensors)
    assert str(load_support(path)) == str(support)


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_a_broken_file_is_refused(support, tmp_path, keep):
    path = tmp_path / "support"
    save_support(support, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="the support is damaged"):
        load_support(path)


def test_entries_outside_the_weight_are_refused(support, tmp_path):
    path = tmp_path / "support"
    header, tensors = support_content(support)
    SUPPORT.write(path, header, tensors | {"flat/a": torch.tensor([0, 6])})
    with pytest.raises(InputError, match="outside"):
        load_support(path)


def test_a_file_of_format_1_has_no_digest_and_is_read(support, tmp_path):
    path = tmp_path / "support"
    header, tensors = support_content(support)
    path.write_bytes(serialize(tensors, {"support": json.dumps(header)}))
    assert str(load_support(path)) == str(support)


def test_a_file_of_format_2_needs_its_digest(support, tmp_path):
    path = tmp_path / "support"
    header, tensors = support_content(support)
    path.write_bytes(serialize(tensors, {"support": json.dumps({"format": "taskedge-support/2"} | header)}))
    with pytest.raises(InputError, match=r"its digest is missing.*start the run anew"):
        load_support(path)


def test_a_changed_index_is_detected(support, tmp_path):
    path = tmp_path / "support"
    save_support(support, path)
    content = bytearray(path.read_bytes())
    content[-16] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="does not match its digest"):
        load_support(path)


@pytest.mark.parametrize(
    "change",
    [
        {"about": {}},
        {"about": {"model_parameters": 1, "unknown": 2}},
        {"about": 3},
        {"shapes": {"a": [2, 3]}},
        {"shapes": {"missing": [2, 3, "a"]}},
        {"shapes": None},
    ],
)
def test_an_incomplete_header_is_refused(support, tmp_path, change):
    header, tensors = support_content(support)
    with pytest.raises(InputError, match="not a whole support"):
        support_from_content(header | change, tensors)
