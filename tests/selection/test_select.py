"""A budget gives a support that meets it exactly, or an error with a reason."""

import math

import pytest
import tiny
import torch

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import linears
from taskedge.errors import BudgetError, InputError, UnknownName
from taskedge.selection.allocations import ALLOCATIONS
from taskedge.selection.patterns import Pattern, find_pattern
from taskedge.selection.rules import RULES
from taskedge.selection.select import parse_share, select

ONE_BY_ONE = [name for name in RULES if RULES[name].choose is None]
every_rule = pytest.mark.parametrize("rule", ONE_BY_ONE)
every_allocation = pytest.mark.parametrize("allocation", list(ALLOCATIONS))


@pytest.mark.parametrize(
    ("budget", "share"), [("0.1%", 0.001), (0.001, 0.001), ("0.001", 0.001), (" 5 % ", 0.05), ("100%", 1.0), (1, 1.0)]
)
def test_a_share_is_read(budget, share):
    assert parse_share(budget) == pytest.approx(share)


@pytest.mark.parametrize(
    "budget",
    [
        "0",
        "0%",
        0,
        -0.1,
        "-1%",
        "150%",
        1.5,
        "abc",
        "%",
        "",
        "1%2",
        "nan",
        "nan%",
        math.nan,
        math.inf,
        None,
        [],
        "1,5%",
    ],
)
def test_a_text_that_is_not_a_share_is_refused_with_an_example(budget):
    with pytest.raises(BudgetError, match=r"write '0\.1%' or 0\.001"):
        parse_share(budget)


@every_rule
@every_allocation
def test_the_budget_is_a_share_of_all_parameters_and_met_exactly(bert, rule, allocation):
    support = select(bert, [tiny.batch(bert)], budget="5%", rule=rule, allocation=allocation)
    assert support.num_entries == round(0.05 * 5859)
    assert support.model_parameters == 5859
    assert (support.rule, support.allocation, support.budget) == (rule, allocation, "5%")
    assert set(support.linears) <= set(candidates(bert))


def test_entries_per_neuron(bert):
    support = select(bert, [tiny.batch(bert)], per_neuron=2)
    for name, linear in support.linears.items():
        assert torch.bincount(linear.rows).tolist() == [2] * linears(bert)[name].shape[0]
    assert support.budget == "2 per neuron"


def test_the_best_of_each_neuron_by_the_rule(mlp):
    x = tiny.batch(mlp)
    support = select(mlp, [x], per_neuron=1)
    best = (mlp.first.weight.abs() * x.flatten(0, 1).norm(dim=0)).argmax(1)
    assert torch.equal(support.linears["first"].columns, best)
    magnitude = select(mlp, rule="magnitude", per_neuron=1)
    assert torch.equal(magnitude.linears["second"].columns, mlp.second.weight.abs().argmax(1))


def test_the_same_seed_gives_the_same_support(mlp):
    one, again, other = (select(mlp, rule="random", budget="5%", seed=seed) for seed in (1, 1, 2))
    flats = [torch.cat([linear.flat for linear in support.linears.values()]) for support in (one, again, other)]
    assert torch.equal(flats[0], flats[1])
    assert not torch.equal(flats[0], flats[2])


@every_rule
def test_the_model_is_not_changed(model, rule):
    if "gradient" in str(RULES[rule].needs) and isinstance(model, tiny.Mlp):
        pytest.skip("gives no loss")
    model.train()
    before = tiny.state(model)
    asked = [parameter.requires_grad for parameter in model.parameters()]
    select(model, [tiny.batch(model)], budget="1%", rule=rule)
    assert tiny.same_bits(model.state_dict(), before)
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


@every_rule
@every_allocation
@pytest.mark.parametrize("max_columns", [1, 3, 100])
def test_no_linear_uses_more_than_max_columns(bert, rule, allocation, max_columns):
    options = {"rule": rule, "allocation": allocation, "max_columns": max_columns}
    support = select(bert, [tiny.batch(bert)], budget="2%", **options)
    assert support.num_entries == round(0.02 * 5859)
    assert all(len(linear.distinct_columns) <= max_columns for linear in support.linears.values())
    assert support.settings["max_columns"] == max_columns


def test_the_columns_kept_have_the_largest_sums_of_scores(mlp):
    support = select(mlp, rule="magnitude", per_neuron=1, max_columns=2, linears=["first"])
    sums = mlp.first.weight.abs().sum(0)
    assert set(support.linears["first"].columns.tolist()) <= set(sums.topk(2).indices.tolist())


@every_rule
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 5), Pattern(3, 7), Pattern(1, 384)])
def test_a_pattern_holds_in_every_group_of_every_linear(bert, rule, pattern):
    support = select(bert, [tiny.batch(bert)], rule=rule, allocation=str(pattern))
    assert set(support.linears) == set(candidates(bert))
    assert all(pattern.matches(linear) for linear in support.linears.values())
    assert (support.allocation, support.budget) == (str(pattern), str(pattern))
    found = find_pattern(support.linears.values())
    assert found == pattern if pattern.m < 32 else found == Pattern(1, 32)  # no row is longer than 32


def test_scores_asked_for_twice_are_the_same(mlp):
    """``global_per_neuron`` computes scores twice: even random scores must be equal."""
    support = select(mlp, rule="random", budget="10%", allocation="global_per_neuron")
    top = select(mlp, rule="random", budget="10%", allocation="global")
    assert {name: len(linear) for name, linear in support.linears.items()} == {
        name: len(linear) for name, linear in top.linears.items()
    }
    name, linear = next(iter(support.linears.items()))
    assert name == "first"  # whose scores are the first draws of the seed, both times
    scores = torch.rand(10, 12, generator=torch.Generator().manual_seed(0))
    assert all(
        torch.equal(scores[row].topk(count).indices.sort().values, linear.columns[linear.rows == row])
        for row, count in enumerate(torch.bincount(linear.rows, minlength=10).tolist())
    )


def test_named_linears_alone(bert):
    support = select(bert, rule="magnitude", budget="0.1%", linears=["*.query"])
    assert set(support.linears) <= {name for name in linears(bert) if name.endswith("query")}


def test_input_norms_and_readers_are_kept_where_data_was_seen(bert):
    support = select(bert, [tiny.batch(bert)], rule="random", budget="5%")
    key = support.linears["bert.encoder.layer.1.attention.self.key"]
    assert key.shared_input == "bert.encoder.layer.1.attention.self.query"
    assert key.input_rms.shape == (16,)
    assert key.input_rms.square().mean().item() == pytest.approx(1.0, abs=0.05)  # after a fresh LayerNorm
    blind = select(bert, rule="random", budget="5%").linears["bert.encoder.layer.1.attention.self.key"]
    assert blind.input_rms is None
    assert blind.shared_input == "bert.encoder.layer.1.attention.self.key"


def test_a_new_rule_is_one_function_and_one_registration(mlp, monkeypatch):
    from taskedge.selection.rules import rule

    monkeypatch.setattr(RULES, "_things", dict(RULES._things))

    @rule("smallest")
    def smallest(weight, statistics, generator):
        """The weights nearest zero."""
        return -weight.abs()

    support = select(mlp, rule="smallest", per_neuron=1)
    assert torch.equal(support.linears["first"].columns, mlp.first.weight.abs().argmin(1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, BudgetError, "give either a budget"),
        ({"budget": 0.1, "per_neuron": 1}, BudgetError, "give either a budget"),
        ({"budget": "0%"}, BudgetError, "trains nothing"),
        ({"budget": "0.0001%"}, BudgetError, "trains nothing"),
        ({"budget": "100%"}, BudgetError, "a budget of 245 entries is more than the 200 that 2 linears can carry"),
        ({"per_neuron": 0}, BudgetError, "0 entries per neuron train nothing: give 1 or more"),
        ({"per_neuron": 13}, BudgetError, "more than the 12 inputs of the widest linear"),
        ({"per_neuron": 1, "max_columns": 0}, BudgetError, "a limit of 0 columns leaves none"),
        ({"per_neuron": 3, "max_columns": 2}, BudgetError, "3 entries per neuron are more than the 2 inputs"),
        ({"per_neuron": 1, "rule": "taskege"}, UnknownName, "did you mean 'taskedge'"),
        ({"per_neuron": 1, "allocation": "even"}, UnknownName, "unknown allocation 'even'"),
        ({"per_neuron": 1, "rule": "taskedge"}, InputError, "looks at data"),
        ({"per_neuron": 1, "rule": "gradient"}, InputError, "looks at data"),
        (
            {"per_neuron": 1, "allocation": "2:4"},
            BudgetError,
            "'2:4' is itself the budget: leave out the number of entries per neuron",
        ),
        ({"budget": "1%", "allocation": "2:4"}, BudgetError, r"leave out the budget \('1%'\)"),
        ({"max_columns": 2, "allocation": "2:4"}, BudgetError, "leave out the maximum number of columns"),
        ({"allocation": "4:2"}, BudgetError, "N must be at least 1 and below M"),
        ({"allocation": "2-4"}, UnknownName, r"unknown allocation '2-4'.*known: N:M, global"),
        ({"per_neuron": 1, "linears": ["frst"]}, InputError, "did you mean 'first'"),
    ],
)
def test_bad_settings(mlp, options, error, message):
    with pytest.raises(error, match=message):
        te.select(mlp, **({"rule": "magnitude"} | options))


def test_nan_weights_are_refused(mlp):
    mlp.first.weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match="scores of linear 'first' are not numbers"):
        select(mlp, rule="magnitude", per_neuron=1)
