"""An allocation spends exactly the budget, as evenly as documented, on the best scores."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.errors import BudgetError, InputError, UnknownName
from taskedge.selection.allocations import ALLOCATIONS, allocate, best_of_all, best_of_rows, top_indices

every_allocation = pytest.mark.parametrize("allocation", list(ALLOCATIONS))


@st.composite
def problems(draw):
    """Draw (shapes, scores, entries): linears with ties, some with columns that may not be chosen."""
    widths = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 7)), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    with_ties = draw(st.booleans())
    shapes, scores = {}, {}
    for place, (rows, inputs) in enumerate(widths):
        usable = draw(st.integers(1, inputs))
        score = torch.rand(rows, inputs, generator=generator)
        if with_ties:
            score = (score * 3).floor()
        score[:, torch.randperm(inputs, generator=generator)[usable:]] = -torch.inf
        shapes[f"linear{place}"], scores[f"linear{place}"] = (rows, usable), score
    capacity = sum(rows * columns for rows, columns in shapes.values())
    return shapes, scores, draw(st.integers(1, capacity))


@every_allocation
@given(problem=problems())
def test_exactly_the_budget_is_spent_on_entries_that_may_be_chosen(allocation, problem):
    shapes, scores, entries = problem
    chosen = allocate(allocation, shapes, scores.__getitem__, entries)
    assert sum(len(flat) for flat in chosen.values()) == entries
    assert set(chosen) <= set(shapes)
    for name, flat in chosen.items():
        assert flat.dtype == torch.int64
        assert bool((flat.diff() > 0).all())
        assert bool(scores[name].flatten()[flat].isfinite().all())


@pytest.mark.slow
@every_allocation
@given(problem=problems())
def test_ties_fall_the_same_way_each_time(allocation, problem):
    shapes, scores, entries = problem
    first, again = (allocate(allocation, shapes, scores.__getitem__, entries) for _ in range(2))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


@every_allocation
def test_equal_scores_are_taken_by_index(allocation):
    scores = {"a": torch.ones(5, 9), "b": torch.ones(3, 40)}
    scores["a"][:, 0] = -torch.inf
    scores["b"][1, 30] = 2.0
    chosen = allocate(allocation, {"a": (5, 8), "b": (3, 40)}, scores.__getitem__, 17)
    for name, flat in chosen.items():
        rows, columns = flat // scores[name].shape[1], flat % scores[name].shape[1]
        plain = scores[name][rows, columns] == 1.0
        skipped = 1 if name == "a" else 0
        if allocation == "block":  # the row with the largest score first, then rows and columns in order
            assert set(rows.tolist()) == ({0} if name == "a" else {1})
            continue
        if allocation in ("per_layer", "global"):
            flats = flat[plain]
            if not len(flats):
                continue
            passed = [index for index in range(int(flats.max()) + 1) if index % 9 or name == "b"]
            assert flats.tolist() == [index for index in passed if not (name == "b" and index == 70)]
        else:
            for row in rows.unique():
                assert columns[(rows == row) & plain].tolist() == list(
                    range(skipped, skipped + int(((rows == row) & plain).sum()))
                )


@pytest.mark.parametrize("count", [1, 7, 40])
@pytest.mark.parametrize("best", [best_of_rows, best_of_all])
def test_the_best_are_those_of_a_stable_sort(best, count):
    scores = (torch.rand(40, generator=torch.Generator().manual_seed(count)) * 6).floor()
    values, indices = best(scores, count)
    expected = torch.sort(scores, descending=True, stable=True).indices[:count]
    assert torch.equal(indices, expected if best is best_of_rows else expected.sort().values)
    assert torch.equal(values, scores[indices])


def test_a_score_that_is_no_number_is_among_the_best():
    for scores in (torch.tensor([1.0, torch.nan, 1.0, 2.0]), torch.tensor([1.0, 1.0, torch.nan, 1.0])):
        for best in (best_of_rows, best_of_all):
            assert best(scores, 2)[0].isnan().any()


def per_row(shapes, scores, chosen):
    """Return (entries of a row, its maximum) for all rows of all linears."""
    for name, (rows, columns) in shapes.items():
        flat = chosen.get(name, torch.empty(0, dtype=torch.int64))
        for count in torch.bincount(flat // scores[name].shape[1], minlength=rows).tolist():
            yield count, columns


@given(problem=problems())
def test_per_neuron_rows_differ_by_one_at_most_unless_full(problem):
    shapes, scores, entries = problem
    chosen = allocate("per_neuron", shapes, scores.__getitem__, entries)
    counts = list(per_row(shapes, scores, chosen))
    most = max(count for count, _ in counts)
    assert all(count >= most - 1 or count == full for count, full in counts)


@given(problem=problems())
def test_per_neuron_takes_the_best_of_each_row_and_of_the_next_ones(problem):
    shapes, scores, entries = problem
    chosen = allocate("per_neuron", shapes, scores.__getitem__, entries)
    taken_next, left_next = [], []
    whole = max(count for count, _ in per_row(shapes, scores, chosen)) - 1
    for name, (rows, columns) in shapes.items():
        flat = chosen.get(name, torch.empty(0, dtype=torch.int64))
        inputs = scores[name].shape[1]
        for row in range(rows):
            mine = flat[flat // inputs == row] % inputs
            ranked = scores[name][row].sort(descending=True).values
            assert torch.equal(scores[name][row][mine].sort(descending=True).values, ranked[: len(mine)])
            if len(mine) == whole + 1:
                taken_next.append(ranked[whole].item())
            elif len(mine) < columns:
                left_next.append(ranked[len(mine)].item())
    assert not left_next or min(taken_next) >= max(left_next)


@given(problem=problems())
def test_per_layer_quotas_are_in_proportion_and_hold_the_best(problem):
    shapes, scores, entries = problem
    chosen = allocate("per_layer", shapes, scores.__getitem__, entries)
    total = sum(rows * columns for rows, columns in shapes.values())
    for name, (rows, columns) in shapes.items():
        flat = chosen.get(name, torch.empty(0, dtype=torch.int64))
        assert abs(len(flat) - entries * rows * columns / total) < 1
        ranked = scores[name].flatten().sort(descending=True).values
        assert torch.equal(scores[name].flatten()[flat].sort(descending=True).values, ranked[: len(flat)])


@given(problem=problems())
def test_global_is_the_top_of_all_scores(problem):
    shapes, scores, entries = problem
    chosen = allocate("global", shapes, scores.__getitem__, entries)
    found = torch.cat([scores[name].flatten()[flat] for name, flat in chosen.items()])
    brute = torch.cat([score.flatten() for score in scores.values()]).sort(descending=True).values[:entries]
    assert torch.equal(found.sort(descending=True).values, brute)


@given(problem=problems())
def test_global_per_neuron_has_the_quotas_of_global_and_the_rows_of_per_neuron(problem):
    shapes, scores, entries = problem
    chosen = allocate("global_per_neuron", shapes, scores.__getitem__, entries)
    top = allocate("global", shapes, scores.__getitem__, entries)
    assert {name: len(flat) for name, flat in chosen.items()} == {name: len(flat) for name, flat in top.items()}
    for name, flat in chosen.items():
        alone = allocate("per_neuron", {name: shapes[name]}, scores.__getitem__, len(flat))
        assert torch.equal(flat, alone[name])


@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 23)), min_size=1, max_size=3),
    m=st.integers(2, 9),
    n=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_n_of_m_keeps_the_n_best_of_every_group_at_any_width(sizes, m, n, seed):
    n, generator = min(n, m - 1), torch.Generator().manual_seed(seed)
    shapes = {str(place): shape for place, shape in enumerate(sizes)}
    scores = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    pattern = ALLOCATIONS[f"{n}:{m}"]
    entries = pattern.num_entries(shapes)
    chosen = allocate(f"{n}:{m}", shapes, scores.__getitem__, entries)
    assert sum(len(flat) for flat in chosen.values()) == entries
    for name, (rows, width) in shapes.items():
        assert bool((chosen[name].diff() > 0).all())
        mask = torch.zeros(rows * width, dtype=torch.bool)
        mask[chosen[name]] = True
        for row, score in zip(mask.view(rows, width), scores[name], strict=True):
            for start in range(0, width, m):
                group, values = row[start : start + m], score[start : start + m]
                best_of_group = values.topk(min(n, len(values))).indices  # a rest group of r keeps min(n, r)
                assert sorted(group.nonzero()[:, 0].tolist()) == sorted(best_of_group.tolist())


@pytest.mark.parametrize("place", [1, 6])
def test_n_of_m_refuses_scores_that_are_not_numbers(place):
    score = torch.rand(1, 7)
    score[0, place] = torch.nan
    with pytest.raises(InputError, match="scores of linear 'a' are not numbers"):
        allocate("1:4", {"a": (1, 7)}, lambda _: score, 2)


@every_allocation
def test_a_budget_beyond_what_can_be_carried_or_below_one_is_refused(allocation):
    shapes, score = {"a": (2, 3)}, torch.rand(2, 3)
    assert len(allocate(allocation, shapes, lambda _: score, 6)["a"]) == 6
    with pytest.raises(BudgetError, match="a budget of 7 entries is more than the 6 that 1 linears can carry"):
        allocate(allocation, shapes, lambda _: score, 7)
    with pytest.raises(BudgetError, match="trains nothing"):
        allocate(allocation, shapes, lambda _: score, 0)


@every_allocation
@pytest.mark.parametrize("place", [0, 5])
def test_a_score_that_is_not_a_number_is_refused(allocation, place):
    score = torch.rand(2, 3)
    score.view(-1)[place] = torch.nan
    with pytest.raises(InputError, match="scores of linear 'a' are not numbers"):
        allocate(allocation, {"a": (2, 3)}, lambda _: score, 2)


def test_an_unknown_allocation_gets_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'per_neuron'"):
        allocate("per_neurone", {"a": (1, 1)}, lambda _: torch.ones(1, 1), 1)


def test_best_breaks_ties_by_the_lower_index():
    assert top_indices(torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]), 2).tolist() == [1, 2]
    assert "per_neuron" in ALLOCATIONS


@given(problem=problems())
def test_a_block_has_the_best_rows_whole_and_the_best_entries_of_the_next(problem):
    """Brute force over sets of rows: no other rows of that number hold a larger sum."""
    shapes, scores, entries = problem
    chosen = allocate("block", shapes, scores.__getitem__, entries)
    per_layer = allocate("per_layer", shapes, scores.__getitem__, entries)
    assert {name: len(flat) for name, flat in chosen.items()} == {name: len(flat) for name, flat in per_layer.items()}
    for name, flat in chosen.items():
        rows, columns = shapes[name]
        sums = scores[name].masked_fill(scores[name] == -torch.inf, 0).double().sum(1)
        counts = torch.bincount(flat // scores[name].shape[1], minlength=rows)
        whole, left = divmod(len(flat), columns)
        assert sorted(counts.tolist(), reverse=True) == [columns] * whole + [left] * (left > 0) + [0] * (
            rows - whole - (left > 0)
        )
        best = max(sums[list(some)].sum() for some in itertools.combinations(range(rows), whole)) if whole else 0.0
        assert float(sums[counts == columns].sum()) == pytest.approx(float(best), abs=1e-9)
        for row in ((counts > 0) & (counts < columns)).nonzero().flatten():
            mine = scores[name].flatten()[flat[flat // scores[name].shape[1] == row]]
            assert torch.equal(mine.sort(descending=True).values, scores[name][row].topk(left).values)
