"""Columns are chosen once for all linears that read an input, by the score that is asked for."""

import copy
import itertools

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import linears
from taskedge.errors import BudgetError, InputError
from taskedge.selection.columns import COLUMN_SCORES, Reader, column_score
from taskedge.selection.select import select
from taskedge.selection.statistics import LinearStatistics

every_score = pytest.mark.parametrize("score", list(COLUMN_SCORES))
QKV = [f"bert.encoder.layer.0.attention.self.{part}" for part in ("query", "key", "value")]


@every_score
def test_readers_of_one_input_have_the_same_columns_and_every_neuron_all_of_them(bert, score):
    support = select(bert, [tiny.batch(bert)], columns=3, column_score=score)
    assert set(support.linears) == set(candidates(bert))
    inputs = {linear.shared_input for linear in support.linears.values()}
    assert support.stored_columns == 3 * len(inputs) < 3 * len(support.linears)
    for linear in support.linears.values():
        first = support.linears[linear.shared_input]
        assert linear.columns_of_every_row.tolist() == first.columns_of_every_row.tolist()
        assert len(linear) == 3 * linear.shape[0]
    assert (support.allocation, support.budget) == ("columns", "3 per neuron")
    assert support.settings == {"seed": 0, "columns": 3, "column_score": score, "neuron_share": 1}


def test_the_best_entries_of_each_neuron_within_the_columns(bert):
    batches = [tiny.batch(bert)]
    wide = select(bert, batches, columns=5)
    support = select(bert, batches, columns=5, per_neuron=2)
    for name, linear in support.linears.items():
        columns = wide.linears[name].columns_of_every_row
        scores = linears(bert)[name].weight.abs() * linear.input_rms
        best = scores[:, columns].topk(2).indices
        assert torch.equal(linear.columns.view(-1, 2), columns[best].sort(1).values)


def test_more_columns_than_an_input_has_are_all_of_them(bert):
    support = select(bert, [tiny.batch(bert)], columns=20)
    assert {len(linear.columns_of_every_row) for linear in support.linears.values()} == {16, 20}


def test_a_cap_on_columns_counts_for_the_shared_input_too(bert):
    support = select(bert, [tiny.batch(bert)], per_neuron=1, max_columns=2)
    assert len({column for name in QKV for column in support.linears[name].columns.tolist()}) <= 2
    blind = select(bert, per_neuron=1, max_columns=2, rule="magnitude")  # without data no input is known to be shared
    assert all(len(linear.distinct_columns) <= 2 for linear in blind.linears.values())


def statistics_of(bert, name):
    """Return the inputs [tokens, in] that a linear reads in the batch."""
    seen = []
    hook = bert.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        bert.eval()(**tiny.batch(bert))
    hook.remove()
    mask = tiny.batch(bert).get("attention_mask")
    x = seen[0]
    return (x if mask is None else x[mask.bool()]).reshape(-1, x.shape[-1]).double()


def stacked(bert, names):
    return torch.cat([bert.get_submodule(name).weight.detach() for name in names]).double()


def gradients(bert, names):
    model = copy.deepcopy(bert).eval().requires_grad_(True)
    model(**tiny.batch(model)).loss.backward()
    return torch.cat([model.get_submodule(name).weight.grad for name in names]).double()


def principal(x, weight, gradient):
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return (u[:, :4] * s[:4] @ vh[:4]).norm(dim=0)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("entries", lambda x, weight, gradient: weight.abs().sum(0) * x.norm(dim=0)),
        ("activation", lambda x, weight, gradient: x.norm(dim=0)),
        ("weight", lambda x, weight, gradient: weight.norm(dim=0)),
        ("gradient", lambda x, weight, gradient: gradient.norm(dim=0)),
        ("pursuit", lambda x, weight, gradient: gradient.norm(dim=0) / x.norm(dim=0)),
        ("principal", principal),
    ],
)
def test_a_score_is_its_formula_over_the_neurons_of_all_readers(bert, score, expected):
    support = select(bert, [tiny.batch(bert)], columns=4, column_score=score)
    scores = expected(statistics_of(bert, QKV[0]), stacked(bert, QKV), gradients(bert, QKV))
    found = support.linears[QKV[1]].columns_of_every_row
    assert found.tolist() == scores.topk(4).indices.sort().values.tolist()


def test_random_columns_depend_on_the_seed_and_not_on_the_rule(bert):
    def chosen(**options):
        support = select(bert, [tiny.batch(bert)], columns=4, column_score="random", **options)
        return [linear.columns_of_every_row.tolist() for linear in support.linears.values()]

    assert chosen(seed=1) == chosen(seed=1) == chosen(seed=1, rule="magnitude")
    assert chosen(seed=1) != chosen(seed=2)


def greedy_by_projection(x, weights, count):
    """Choose the columns one by one, each by least squares on those before."""
    chosen = []
    for _ in range(count):
        gains = []
        for column in range(x.shape[1]):
            left = x[:, column]
            if chosen:
                left = left - x[:, chosen] @ torch.linalg.lstsq(x[:, chosen], left[:, None]).solution[:, 0]
            gains.append(-1.0 if column in chosen else float(weights[column] * left.norm()))
        chosen.append(max(range(x.shape[1]), key=lambda column: gains[column]))
    return chosen


def test_greedy_takes_what_the_columns_before_do_not_span():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(7, 5))
    x = torch.randn(40, 7) * torch.tensor([3.0, 2.9, 2.0, 1.5, 1.0, 0.5, 0.2])
    x[:, 1] = 0.98 * x[:, 0] + 0.01 * torch.randn(40)  # says nothing that the first column does not
    support = te.select(layer, [x], columns=4, column_score="greedy", linears=["0"])
    expected = greedy_by_projection(x.double(), layer[0].weight.detach().double().abs().sum(0), 4)
    assert support.linears["0"].columns_of_every_row.tolist() == sorted(expected)
    assert not {0, 1} <= set(expected)
    plain = te.select(layer, [x], columns=4, linears=["0"]).linears["0"].columns_of_every_row.tolist()
    assert {0, 1} <= set(plain)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 99))
def test_greedy_on_few_tokens_still_chooses_as_many_columns_as_asked(tokens, count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 8, generator=generator).double()
    statistics = LinearStatistics("0", input_squares=x.square().sum(0), input_products=x.t() @ x)
    linear = linears(nn.Sequential(nn.Linear(8, 3)))["0"]
    scores = COLUMN_SCORES["greedy"].score([Reader(linear, statistics, lambda: linear.weight)], count, generator)
    assert (scores > 0).sum() == count
    assert sorted(scores[scores > 0].tolist()) == list(range(1, count + 1))


def test_products_of_inputs_leave_padding_out_and_are_shared_by_readers(bert):
    from taskedge.selection.statistics import INPUT_PRODUCTS, measure

    found = measure(bert, candidates(bert), [tiny.batch(bert), tiny.batch(bert)], [INPUT_PRODUCTS])
    x = statistics_of(bert, QKV[0])
    torch.testing.assert_close(found[QKV[0]].input_products, 2 * x.t() @ x, rtol=1e-5, atol=1e-5)
    assert found[QKV[1]].input_products is found[QKV[0]].input_products


def test_a_new_score_is_one_function_and_one_registration(bert, monkeypatch):
    monkeypatch.setattr(COLUMN_SCORES, "_things", dict(COLUMN_SCORES._things))

    @column_score("first")
    def first(readers, count, generator):
        """The first columns."""
        return -torch.arange(readers[0].linear.shape[1]).float()

    support = select(bert, [tiny.batch(bert)], columns=2, column_score="first")
    assert all(linear.columns_of_every_row.tolist() == [0, 1] for linear in support.linears.values())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"columns": 0}, BudgetError, "a limit of 0 columns leaves none"),
        ({"columns": 2, "budget": "1%"}, BudgetError, r"itself the budget: leave out the budget \('1%'\)"),
        ({"columns": 2, "max_columns": 3}, BudgetError, "leave out the maximum number of columns"),
        ({"columns": 2, "allocation": "per_layer"}, BudgetError, "leave out the allocation"),
        ({"columns": 2, "per_neuron": 3}, BudgetError, "3 entries per neuron are more than the 2 inputs"),
        ({"columns": 2, "rule": "spt"}, BudgetError, "leave out the number of columns"),
        ({"per_neuron": 1, "column_score": "weight"}, BudgetError, "ranked only if their number is limited"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(bert, options, error, message):
    with pytest.raises(error, match=message):
        select(bert, [tiny.batch(bert)], **options)


def test_without_data_no_input_is_known_to_be_shared(bert):
    with pytest.raises(InputError, match="2 columns are chosen for each input, and only data shows which"):
        select(bert, columns=2, rule="magnitude")
    with pytest.raises(InputError, match="the column score 'activation' looks at data"):
        select(bert, per_neuron=1, max_columns=2, rule="magnitude", column_score="activation")


def test_weights_that_are_no_numbers_are_refused(bert):
    with torch.no_grad():
        bert.get_submodule(QKV[1]).weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"'weight' scores of the input of .*query' are not numbers"):
        select(bert, [tiny.batch(bert)], columns=2, column_score="weight")


@pytest.mark.parametrize(("score", "per_neuron"), itertools.product(["entries", "random"], [None, 1]))
def test_models_of_every_kind_take_columns(model, score, per_neuron):
    support = select(model, [tiny.batch(model)], columns=2, column_score=score, per_neuron=per_neuron)
    assert all(len(linear.distinct_columns) <= 2 for linear in support.linears.values())


def test_drawn_columns_are_shared_and_their_union_is_the_support(bert):
    support = select(bert, [tiny.batch(bert)], columns=3, column_draws=4, seed=5)
    draws = support.settings["drawn_columns"]
    assert draws[QKV[0]] == draws[QKV[1]] == draws[QKV[2]]
    for name, linear in support.linears.items():
        assert [len(set(draw)) for draw in draws[name]] == [3] * 4
        assert linear.columns_of_every_row.tolist() == sorted({column for draw in draws[name] for column in draw})
    assert support.stored_columns == 3 * len({linear.shared_input for linear in support.linears.values()})
    assert support.budget == "3 per neuron, 4 draws"
    assert "(3 at a time)" in str(support)
    again = select(bert, [tiny.batch(bert)], columns=3, column_draws=4, seed=5)
    other = select(bert, [tiny.batch(bert)], columns=3, column_draws=4, seed=6)
    assert again.settings == support.settings != other.settings


def test_columns_are_drawn_with_probabilities_proportional_to_their_scores(bert):
    support = select(bert, [tiny.batch(bert)], columns=1, column_draws=800, rule="magnitude", column_score="weight")
    drawn = torch.tensor(support.settings["drawn_columns"][QKV[0]]).flatten()
    scores = stacked(bert, QKV).square().sum(0).sqrt()
    expected = 800 * scores / scores.sum()
    found = torch.bincount(drawn, minlength=len(scores))
    assert ((found - expected).square() / expected).sum() < 2 * len(scores)  # chi-square with len - 1 degrees


def test_a_ranking_weights_no_columns(bert):
    with pytest.raises(InputError, match="'greedy' ranks columns"):
        select(bert, [tiny.batch(bert)], columns=2, column_draws=2, column_score="greedy")
