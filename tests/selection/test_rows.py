"""A limit on rows keeps the best neurons for the columns that may be used, and entries there only."""

import itertools

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import taskedge as te
from taskedge.delta.file import load, save
from taskedge.delta.interop.lora_rank import lora_ranks
from taskedge.errors import BudgetError, InputError
from taskedge.selection.columns import in_columns
from taskedge.selection.rows import choose_rows, in_rows, in_whole_weights, usable_rows
from taskedge.selection.select import select


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 7), st.booleans(), st.integers(0, 2**16))
def test_no_other_rows_hold_a_larger_sum_in_these_columns(rows, columns, count, with_last, seed):
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(rows, columns + 2, generator=generator) - 0.5
    used = torch.randperm(columns + 2, generator=generator)[:columns].sort().values
    if with_last:  # what a rule puts last is the same in all rows
        score[:, used[0]] = torch.finfo(torch.float32).min
    chosen = choose_rows(["a"], in_columns({"a": score}.__getitem__, {"a": used}), count)["a"]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    inside = score[:, used[1:] if with_last else used].double().sum(1)
    best = max(inside[list(rows)].sum() for rows in itertools.combinations(range(rows), min(count, rows)))
    assert inside[chosen].sum().item() == pytest.approx(best.item(), abs=1e-9)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**16))
def test_entries_among_chosen_rows_are_entries_of_the_weight(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(9, width, generator=generator)
    chosen = {"a": torch.randperm(9, generator=generator)[:rows].sort().values}
    part = in_rows({"a": score}.__getitem__, chosen)("a")
    flat = (part > 0.5).flatten().nonzero().flatten()
    whole = in_whole_weights({"a": flat}, chosen, {"a": width})["a"]
    assert torch.equal(score.flatten()[whole], part.flatten()[flat])
    assert bool((whole.diff() > 0).all())


def test_a_limit_below_one_and_scores_that_are_no_numbers_are_refused():
    assert (usable_rows(5, None), usable_rows(5, 3), usable_rows(5, 9)) == (5, 3, 5)
    for call in (lambda: usable_rows(5, 0), lambda: choose_rows([], {}.__getitem__, 0)):
        with pytest.raises(BudgetError, match="a limit of 0 rows leaves none"):
            call()
    with pytest.raises(InputError, match="'a' are not numbers"):
        choose_rows(["a"], {"a": torch.tensor([[torch.nan], [1.0]])}.__getitem__, 1)


def best_rows(scores, columns, count):
    """Return the rows with the largest sums in some columns, by trying all sets of rows."""
    sums = scores[:, columns].double().sum(1)
    return max(itertools.combinations(range(len(sums)), count), key=lambda rows: sums[list(rows)].sum().item())


def test_a_block_is_every_entry_of_the_best_rows_and_columns(bert):
    batches = [tiny.batch(bert)]
    wide = select(bert, batches, columns=3)
    support = select(bert, batches, max_rows=2, max_columns=3, allocation="block")
    limits = {"max_columns": 3, "max_rows": 2, "column_score": "entries"}
    neurons = sum(linear.shape[0] for linear in support.linears.values())
    assert support.settings == {"seed": 0, **limits, "neuron_share": 2 * len(support.linears) / neurons}
    assert (support.allocation, support.budget) == ("block", "2 rows x 3 columns")
    assert support.linears.keys() == wide.linears.keys()
    for name, linear in support.linears.items():
        columns = wide.linears[name].columns_of_every_row
        scores = bert.get_submodule(name).weight.abs() * linear.input_rms
        assert linear.distinct_columns.tolist() == columns.tolist()
        assert linear.distinct_rows.tolist() == list(best_rows(scores, columns, 2))
        assert len(linear) == 6
    assert "3 distinct columns each in at most 2 rows, by rule" in str(support)
    same = select(bert, batches, columns=3, max_rows=2)  # the same entries, named by their columns
    assert all(torch.equal(same.linears[name].flat, linear.flat) for name, linear in support.linears.items())


def test_larger_limits_than_the_weight_are_all_of_it(bert):
    support = select(bert, rule="magnitude", max_rows=99, max_columns=99, allocation="block")
    assert all(len(linear) == linear.shape[0] * linear.shape[1] for linear in support.linears.values())


def test_drawn_columns_share_their_rows(bert):
    support = select(bert, [tiny.batch(bert)], columns=2, column_draws=3, max_rows=4)
    draws = support.settings["drawn_columns"]
    for name, linear in support.linears.items():
        assert len(linear.distinct_rows) == 4
        assert set(linear.columns.tolist()) == {column for draw in draws[name] for column in draw}


def test_avoided_entries_count_for_no_row(mlp):
    first = select(mlp, rule="magnitude", max_rows=2, max_columns=12, allocation="block")
    second = select(mlp, rule="magnitude", max_rows=2, max_columns=12, allocation="block", avoid=[first.linears])
    for name, linear in second.linears.items():
        assert not set(linear.distinct_rows.tolist()) & set(first.linears[name].distinct_rows.tolist())


def test_a_rule_that_puts_entries_last_stays_within_the_columns(bert):
    """Dead inputs and columns that may not be used are told apart."""
    batches = [tiny.batch(bert, seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        bert.bert.encoder.layer[0].attention.self.value.weight[:, :14] = 0  # hardly matters: their gradients do
    for score in ("weight", "random"):
        support = select(
            bert, batches, rule="fisher_bottom", max_columns=3, max_rows=5, allocation="block", column_score=score
        )
        assert all(len(linear.distinct_columns) == 3 for linear in support.linears.values())
        assert all(len(linear.distinct_rows) == 5 for linear in support.linears.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_neuron": 1, "max_rows": 0}, "a limit of 0 rows leaves none"),
        ({"max_rows": 2, "allocation": "2:4"}, r"is itself the budget: leave out the maximum number of rows \(2\)"),
        ({"max_rows": 2, "rule": "spt", "budget": "1%"}, "leave out the maximum number of rows"),
        ({"allocation": "block", "max_rows": 2}, "the size of a block is not given"),
        ({"allocation": "block", "per_neuron": 2, "max_columns": 2}, "leave out the number of entries per neuron"),
        ({"budget": "5%", "max_rows": 1, "max_columns": 1}, "than the 2 that 2 linears can carry: lower the budget"),
    ],
)
def test_limits_that_cannot_be_met_are_refused(mlp, options, message):
    with pytest.raises(BudgetError, match=message):
        select(mlp, rule=options.pop("rule", "magnitude"), **options)


@pytest.mark.slow
def test_a_block_trains_is_stored_and_has_the_rank_of_its_shorter_side(bert, tmp_path):
    te.install(bert, select(bert, [tiny.batch(bert)], max_rows=2, max_columns=3, allocation="block"))
    delta = te.extract(tiny.train(bert))
    save(delta, tmp_path / "block.safetensors")
    again = load(tmp_path / "block.safetensors")
    for name, linear in delta.linears.items():
        assert torch.equal(again.linears[name].values, linear.values)
        assert torch.equal(again.linears[name].rows, linear.rows)
    assert set(lora_ranks(again).values()) == {2}
