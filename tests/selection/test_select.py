"""A budget gives a support that meets it exactly, or an error with a reason."""

import copy
import math
from types import SimpleNamespace

import pytest
import tiny
import torch

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import linears
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.errors import BudgetError, InputError, UnknownName
from taskedge.selection.allocations import ALLOCATIONS
from taskedge.selection.patterns import Pattern, find_pattern
from taskedge.selection.rules import RULES
from taskedge.selection.select import parse_share, select
from taskedge.selection.statistics import measure

ONE_BY_ONE = [name for name in RULES if RULES[name].choose is None and not RULES[name].needs_dense_run]


def two_batches(model):
    """Return as many batches as every rule needs."""
    return [tiny.batch(model, seed=seed) for seed in (0, 1)]


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
    support = select(bert, two_batches(bert), budget="5%", rule=rule, allocation=allocation)
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
    select(model, two_batches(model), budget="1%", rule=rule)
    assert tiny.same_bits(model.state_dict(), before)
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


@every_rule
@every_allocation
@pytest.mark.parametrize("max_columns", [1, 3, 100])
def test_no_linear_uses_more_than_max_columns(bert, rule, allocation, max_columns):
    options = {"rule": rule, "allocation": allocation, "max_columns": max_columns}
    support = select(bert, two_batches(bert), budget="2%", **options)
    assert support.num_entries == round(0.02 * 5859)
    assert all(len(linear.distinct_columns) <= max_columns for linear in support.linears.values())
    assert support.settings["max_columns"] == max_columns


@every_allocation
@pytest.mark.parametrize("max_rows", [6, 7])
def test_no_linear_uses_more_than_max_rows_and_the_budget_is_met(bert, allocation, max_rows):
    options = {"rule": "magnitude", "allocation": allocation, "max_rows": max_rows, "max_columns": 4}
    support = select(bert, budget="2%", **options)
    assert support.num_entries == round(0.02 * 5859)
    assert all(len(linear.distinct_rows) <= max_rows for linear in support.linears.values())
    assert all(len(linear.distinct_columns) <= 4 for linear in support.linears.values())


def test_the_columns_kept_have_the_largest_sums_of_scores(mlp):
    support = select(mlp, rule="magnitude", per_neuron=1, max_columns=2, linears=["first"])
    sums = mlp.first.weight.abs().sum(0)
    assert set(support.linears["first"].columns.tolist()) <= set(sums.topk(2).indices.tolist())


@every_rule
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 5), Pattern(3, 7), Pattern(1, 384)])
def test_a_pattern_holds_in_every_group_of_every_linear(bert, rule, pattern):
    support = select(bert, two_batches(bert), rule=rule, allocation=str(pattern))
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
        ({"allocation": "2-4"}, UnknownName, r"unknown allocation '2-4'.*known: N:M, block, global"),
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


def test_a_linear_that_never_runs_gets_no_entries(mlp):
    mlp.spare = torch.nn.Linear(9, 9)
    support = select(mlp, [tiny.batch(mlp)], per_neuron=2)
    assert "spare" not in support.linears
    assert support.settings["never_ran"] == ["spare"]
    assert str(support).endswith("; left out: 1 linear that never ran on the calibration data")
    measured = measure(mlp, candidates(mlp), [tiny.batch(mlp)])
    again = select(mlp, per_neuron=2, statistics=dict(measured))
    assert all(torch.equal(again.linears[name].flat, part.flat) for name, part in support.linears.items())
    assert again.settings == support.settings


def gradients_of(model, batches):
    """Return the gradients of each batch by linear, each float64 [out, in] from a plain backward pass."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    found = {name: [] for name in candidates(model)}
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()
        for name, linear in candidates(model).items():
            found[name].append(linear.adapter.matrix(linear.module.weight.grad).double())
    return found


GRADIENT_FORMULAS = {
    "snip": lambda weight, gradients, norm: (sum(gradients) * weight).abs(),
    "ratio": lambda weight, gradients, norm: sum(gradients).abs() / (weight.abs() + 1e-8),
    "pursuit": lambda weight, gradients, norm: sum(gradients).abs() / norm,
    "pursuit_t": lambda weight, gradients, norm: sum(gradients).abs() / sum(g.square() for g in gradients).sqrt(),
    "fisher_bottom": lambda weight, gradients, norm: -sum(g.square() for g in gradients),
    "first_batch": lambda weight, gradients, norm: gradients[0].abs(),
}


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("rule", GRADIENT_FORMULAS)
def test_a_gradient_rule_takes_the_best_by_its_formula_over_plain_backward_passes(architecture, rule):
    model = tiny.MODELS[architecture]()
    batches = [tiny.batch(model, seed=seed) for seed in range(4)]
    support = select(model, batches, rule=rule, per_neuron=2)
    gradients = gradients_of(model, batches)
    for name, linear in support.linears.items():
        weight, norm = candidates(model)[name].weight.double(), linear.input_rms.double()
        expected = GRADIENT_FORMULAS[rule](weight, gradients[name], norm)
        chosen = expected[linear.rows, linear.columns].view(-1, 2).sort(1, descending=True).values
        torch.testing.assert_close(chosen, expected.topk(2, dim=1).values, rtol=1e-3, atol=1e-12)


def test_pursuit_compares_linears_by_the_decrease_of_the_loss_under_scaled_steps(bert):
    batches = [tiny.batch(bert, seed=seed) for seed in range(2)]
    support = select(bert, batches, rule="pursuit", budget=40 / 5859, allocation="global")
    everything = select(bert, batches, rule="pursuit", per_neuron=1)  # with the norms of every linear
    best = []
    for name, gradients in gradients_of(bert, batches).items():
        rms = everything.linears[name].input_rms.double()
        best += [
            (value, name, flat)
            for flat, value in enumerate((sum(gradients).abs() * rms.square().mean().sqrt() / rms).flatten().tolist())
        ]
    best.sort(key=lambda entry: -entry[0])
    chosen = {(name, flat) for name, linear in support.linears.items() for flat in linear.flat.tolist()}
    assert chosen == {(name, flat) for _, name, flat in best[:40]}


def test_dead_inputs_are_chosen_last_by_every_gradient_rule(mlp):
    class WithLoss(tiny.Mlp):
        def forward(self, x):
            return SimpleNamespace(loss=super().forward(x).square().mean())

    model = WithLoss()
    batches = [tiny.batch(mlp, seed=seed) * (torch.arange(12) % 3 > 0) for seed in range(3)]
    for rule in GRADIENT_FORMULAS:
        columns = select(model, batches, rule=rule, per_neuron=8, linears=["first"]).linears["first"].columns
        assert bool((columns % 3 > 0).all()), rule


def test_a_rule_that_compares_batches_needs_two(bert):
    with pytest.raises(InputError, match="'pursuit_t' compares the gradients of 2 or more batches, and there is 1"):
        select(bert, [tiny.batch(bert)], rule="pursuit_t", per_neuron=1)


def test_a_dense_run_is_not_made_of_batches(bert):
    with pytest.raises(InputError, match="'change' looks at what a dense run changed: give the statistics of one"):
        select(bert, [tiny.batch(bert)], rule="change", per_neuron=1)


@pytest.mark.parametrize("storage", ["int8", "mmap"])
def test_read_only_weights_are_read_by_principal_and_refused_by_gradient_rules(bert, storage, tmp_path):
    plain = select(bert, rule="magnitude", per_neuron=1)
    bert.save_pretrained(tmp_path)
    model = type(bert).from_pretrained(tmp_path)
    set_weight_storage(model, storage)
    assert select(model, rule="principal:3", per_neuron=1).num_entries == plain.num_entries
    if storage == "mmap":
        expected = select(bert, rule="principal:3", per_neuron=1)
        found = select(model, rule="principal:3", per_neuron=1)
        assert all(torch.equal(found.linears[name].flat, expected.linears[name].flat) for name in expected.linears)
    for rule in GRADIENT_FORMULAS:
        with pytest.raises(InputError, match=r"read-only .* so it has no gradient"):
            select(model, [tiny.batch(bert)], rule=rule, per_neuron=1)
