"""SPT's selection equals brute force over every τ."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import linears
from taskedge.errors import BudgetError, InputError
from taskedge.selection.spt import SelectedParameters, select_hybrid, trainable_vectors


def trained(chosen, shapes, vectors):
    """Return the number of trained parameters."""
    modules = sum(rank * sum(shapes[name]) for name, rank in chosen.low_rank.items())
    return (
        sum(map(len, chosen.entries.values())) + modules + sum(vectors[name].numel() for name in chosen.full_parameters)
    )


def at(tau, shapes, scores, vectors, rank):
    """Return the selection of SPT for the global top τ, by the definition in the paper."""
    tensors = {name: scores[name].flatten() for name in shapes} | vectors
    owner = torch.cat([torch.full((len(tensor),), place) for place, tensor in enumerate(tensors.values())])
    index = torch.cat([torch.arange(len(tensor)) for tensor in tensors.values()])
    top = torch.sort(torch.cat(list(tensors.values())), descending=True, stable=True).indices[:tau]
    chosen = SelectedParameters({}, {}, ())
    for place, (name, tensor) in enumerate(tensors.items()):
        mine = index[top[owner[top] == place]].sort().values
        if name in vectors:
            if 5 * len(mine) >= len(tensor):
                chosen = SelectedParameters(chosen.entries, chosen.low_rank, (*chosen.full_parameters, name))
            continue
        out, inputs = shapes[name]
        structured = rank * (out + inputs)
        if structured < out * inputs and 10 * len(mine) >= structured:
            chosen.low_rank[name] = rank
        elif len(mine):
            chosen.entries[name] = mine
    return chosen


@st.composite
def problems(draw):
    """Draw (shapes, scores, vectors, rank) with ties and zeros among the scores."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    levels = draw(st.sampled_from([3, 20, 10**6]))
    scale = draw(st.lists(st.floats(0.01, 1.0), min_size=7, max_size=7))

    def values(place, *shape):
        return (torch.rand(*shape, generator=generator) * scale[place] * levels).floor()

    sizes = draw(st.lists(st.tuples(st.integers(1, 14), st.integers(1, 14)), min_size=1, max_size=4))
    shapes = {f"linear{place}": shape for place, shape in enumerate(sizes)}
    scores = {name: values(place, *shape) for place, (name, shape) in enumerate(shapes.items())}
    lengths = draw(st.lists(st.integers(1, 12), max_size=3))
    vectors = {f"vector{place}": values(4 + place, length) for place, length in enumerate(lengths)}
    return shapes, scores, vectors, draw(st.integers(1, 3))


@pytest.mark.slow
@given(problem=problems(), share=st.floats(0.001, 1.0))
def test_it_is_the_largest_tau_whose_trained_parameters_stay_within_the_budget(problem, share):
    shapes, scores, vectors, rank = problem
    size = sum(score.numel() for score in scores.values()) + sum(vector.numel() for vector in vectors.values())
    every = [at(tau, shapes, scores, vectors, rank) for tau in range(size + 1)]
    counts = [trained(chosen, shapes, vectors) for chosen in every]
    assert counts == sorted(counts)  # which is why there is a largest τ
    budget = max(1, round(share * counts[-1]))
    best = max(tau for tau in range(size + 1) if counts[tau] <= budget)
    if not counts[best]:
        with pytest.raises(BudgetError, match="is below the cost of the most sensitive part"):
            select_hybrid(shapes, scores.__getitem__, vectors, budget, rank)
        return
    found = select_hybrid(shapes, scores.__getitem__, vectors, budget, rank)
    assert (found.low_rank, found.full_parameters) == (every[best].low_rank, every[best].full_parameters)
    assert found.entries.keys() == every[best].entries.keys()
    assert all(torch.equal(found.entries[name], flat) for name, flat in every[best].entries.items())
    assert trained(found, shapes, vectors) == counts[best] <= budget
    with pytest.raises(BudgetError, match=f"is more than the {counts[-1]:,} that can be trained in this way"):
        select_hybrid(shapes, scores.__getitem__, vectors, counts[-1] + 1, rank)


def test_by_hand():
    matrix = torch.zeros(8, 8)
    matrix[0, 0], matrix[3, 5], matrix[7, 7] = 9, 7, 5
    vector = torch.tensor([8.0, 6.0, 0, 0, 0, 0])  # a fifth of six is two
    shapes, scores = {"m": (8, 8)}, {"m": matrix}.__getitem__
    chosen = select_hybrid(
        shapes, scores, {"v": vector}, 7, rank=1
    )  # the second of the matrix's brings its module of 16
    assert (chosen.entries["m"].tolist(), chosen.low_rank, chosen.full_parameters) == ([0], {}, ())
    chosen = select_hybrid(shapes, scores, {"v": vector}, 16, rank=1)
    assert (chosen.entries, chosen.low_rank, chosen.full_parameters) == ({}, {"m": 1}, ())
    chosen = select_hybrid(shapes, scores, {"v": vector}, 22, rank=1)
    assert (chosen.entries, chosen.low_rank, chosen.full_parameters) == ({}, {"m": 1}, ("v",))
    chosen = select_hybrid(shapes, scores, {"v": vector}, 8, rank=4)  # 64: no smaller than the matrix, so entries
    assert (chosen.entries["m"].tolist(), chosen.low_rank, chosen.full_parameters) == ([0, 29], {}, ("v",))


@pytest.mark.parametrize("where", ["matrix", "vector"])
def test_a_sensitivity_that_is_not_a_number_is_refused(where):
    scores, vector = torch.rand(4, 4), torch.rand(3)
    (scores if where == "matrix" else vector).view(-1)[-1] = torch.nan
    with pytest.raises(InputError, match="not numbers"):
        select_hybrid({"m": (4, 4)}, {"m": scores}.__getitem__, {"v": vector}, 3, 1)


def test_vectors_are_biases_of_the_linears_and_the_norms_of_the_blocks(bert):
    found = list(trainable_vectors(bert, candidates(bert)))
    assert len(found) == 2 * (6 + 4)  # six biases, two norms of two
    assert all(name.startswith("bert.encoder.layer.") for name in found)
    assert {"bert.encoder.layer.0.output.LayerNorm.bias", "bert.encoder.layer.1.attention.self.key.bias"} <= set(found)
    alone = trainable_vectors(bert, candidates(bert, ["*.0.*.query"]), all_norms=False)
    assert list(alone) == ["bert.encoder.layer.0.attention.self.query.bias"]
    part = trainable_vectors(bert, candidates(bert, ["*.0.*.query"]))
    assert len(part) == 1 + 2 * 4


def test_vectors_of_a_model_without_blocks_are_all_but_the_heads(mlp):
    mlp.norm = torch.nn.LayerNorm(4)
    assert list(trainable_vectors(mlp, candidates(mlp))) == ["first.bias", "second.bias", "norm.weight", "norm.bias"]


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.vit])
@pytest.mark.parametrize("budget", ["1%", "4%", "10%"])
def test_select_end_to_end_is_brute_force_on_dense_gradients(make, budget):
    model = make()
    batches = [tiny.batch(model, seed=seed) for seed in range(3)]
    support = te.select(model, batches, budget=budget, rule="spt", rank=1)
    names, layers = list(candidates(model)), linears(model)
    squares = {}
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()
        for name, parameter in model.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            squares[name] = squares.get(name, 0) + gradient.square()
    shapes = {name: layers[name].shape for name in names}
    scores = {name: layers[name].adapter.matrix(squares[f"{name}.weight"]) for name in names}
    vectors = {name: squares[name] for name in trainable_vectors(model, candidates(model))}
    total = sum(parameter.numel() for parameter in model.parameters())
    allowed = round(float(budget.rstrip("%")) / 100 * total)
    size = sum(score.numel() for score in scores.values()) + sum(vector.numel() for vector in vectors.values())
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        within = trained(at(middle, shapes, scores, vectors, 1), shapes, vectors) <= allowed
        low, high = (middle, high) if within else (low, middle - 1)
    expected = at(low, shapes, scores, vectors, 1)
    assert {name: linear.flat.tolist() for name, linear in support.linears.items()} == {
        name: flat.tolist() for name, flat in expected.entries.items()
    }
    assert (support.low_rank, support.full_parameters) == (expected.low_rank, expected.full_parameters)
    assert support.num_low_rank_parameters == sum(sum(shapes[name]) for name in support.low_rank)
    assert support.num_full_parameters == sum(vectors[name].numel() for name in support.full_parameters)
    assert support.parameters == trained(expected, shapes, vectors) <= allowed
    assert support.share == support.parameters / total
    assert (support.rule, support.allocation, support.settings) == ("spt", "spt", {"seed": 0, "rank": 1})


def test_all_three_kinds_are_chosen_somewhere(bert):
    support = te.select(bert, [tiny.batch(bert)], budget="4%", rule="spt", rank=1)
    assert support.num_entries
    assert support.low_rank
    assert support.full_parameters
    assert len(support.low_rank) == 1
    assert str(support).startswith(
        f"{support.num_entries:,} entries + {support.num_low_rank_parameters:,} in 1 low-rank "
        f"module + {support.num_full_parameters:,} in {len(support.full_parameters)} biases and norms "
        f"({support.share:.4%} of 5,859 parameters)"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"per_neuron": 1}, r"'spt' spreads its budget itself: leave out the number of entries per neuron \(1\)$"),
        (
            {"budget": 0.1, "max_columns": 3, "allocation": "global"},
            r"leave out the maximum number of columns \(3\) and the allocation \('global'\)$",
        ),
        ({}, "give either a budget"),
        ({"budget": 0.1, "rank": 0}, "0 is not a rank of a low-rank module"),
        ({"budget": 0.1, "batches": None}, "'spt' looks at data"),
        ({"budget": 1e-9}, "a budget of 0 parameters is below the cost"),
    ],
)
def test_settings_that_leave_it_nothing_to_do(bert, options, told):
    with pytest.raises(InputError, match=told):
        te.select(bert, **({"batches": [tiny.batch(bert)], "rule": "spt"} | options))
