"""A support is sound when it exists, and says what it holds."""

import pytest
import torch

from taskedge.errors import InputError
from taskedge.selection.support import LinearSupport, Support


def linear(rows, columns, shape=(3, 4)):
    return LinearSupport(
        shape, torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64), reads="x"
    )


def test_rows_and_columns_of_flat_indices():
    made = LinearSupport.from_flat((3, 4), torch.tensor([1, 4, 7, 11]), "x")
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
def test_what_is_not_sound_is_refused(rows, columns, message):
    with pytest.raises(InputError, match=message):
        linear(rows, columns)


def test_an_empty_one_is_sound():
    assert len(linear([], [])) == 0
    assert linear([], []).distinct_columns.tolist() == []


def test_a_support_counts_and_prints():
    support = Support({"a": linear([0, 1], [1, 1]), "b": linear([0, 1], [2, 3])}, 4000, "taskedge", "per_neuron")
    assert support.entries == 4
    assert support.share == 0.001
    assert str(support) == (
        "4 entries (0.1000% of 4,000 parameters) in 2 linears, 1-2 distinct columns each, "
        "by rule 'taskedge' and allocation 'per_neuron'"
    )
    assert "0 entries" in str(Support({}, 10))


def test_all_that_trains_counts_towards_the_share():
    support = Support(
        {"a": linear([0, 1], [1, 1])},
        1000,
        low_rank={"b": 2},
        low_rank_parameters=14,
        whole=("n.weight", "n.bias"),
        whole_parameters=8,
    )
    assert (support.entries, support.parameters, support.share) == (2, 24, 0.024)
    assert str(support).startswith(
        "2 entries + 14 in 1 low-rank modules + 8 in 2 whole vectors (2.4000% of 1,000 parameters) in 1 linears"
    )
