"""Weights that are read with faults: bit-identical at rate 0, entries beside them, and restored at the end."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch

import taskedge as te
from taskedge.backbone.fingerprint import digest
from taskedge.delta.apply import apply
from taskedge.delta.delta import Delta, LinearDelta, LowRankDelta
from taskedge.errors import InputError
from taskedge.placement.cell_faults import CellFaults
from taskedge.placement.faulty_base import ReadCounts, StorageSettings, StoredBase, measure_faults
from taskedge.placement.number_formats import format_for


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def sparse_delta(model):
    name, module = next((n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear))
    index = torch.arange(min(module.weight.shape))
    base = module.weight.detach()[index, index]
    linear = LinearDelta(tuple(module.weight.shape), index, index, base + 0.37, "float32", digest(base))
    return name, Delta({name: linear})


@pytest.mark.parametrize("bit_mask", [False, True])
@pytest.mark.parametrize("number_format", ["adaptive:8.3", "fixed:2.6"])
def test_rate_0_is_the_stored_weights_bit_for_bit(mlp, number_format, bit_mask):
    before = weights(mlp)
    stored = StoredBase(mlp, list(before), StorageSettings(number_format, bit_mask))
    counts = stored.read(CellFaults.uniform(0.0), generator())
    for name, parameter in mlp.named_parameters():
        number = format_for(number_format, before[name])
        assert torch.equal(parameter, number.decode(number.encode(before[name].flatten())).view_as(parameter)), name
    assert (counts.wrong_value_cells, counts.wrong_mask_cells, counts.changed_values) == (0, 0, 0)
    stored.restore()
    assert all(torch.equal(parameter, before[name]) for name, parameter in mlp.named_parameters())


def test_entries_are_those_of_the_delta_until_the_weight_below_is_read_wrongly(mlp):
    name, delta = sparse_delta(mlp)
    apply(mlp, delta)
    module = mlp.get_submodule(name)
    tuned = module.weight.detach().clone()
    stored = StoredBase(mlp, [f"{name}.weight"], StorageSettings())
    stored.read(CellFaults.uniform(0.0), generator())
    rows = delta.linears[name].rows
    assert torch.equal(module.weight[rows, rows], delta.linears[name].values)  # bit for bit
    clean = module.weight.detach().clone()
    stored.read(CellFaults.uniform(0.2), generator(1))
    moved = (module.weight != clean)[rows, rows]
    assert moved.any()
    assert not moved.all()
    assert torch.equal(module.weight[rows, rows][~moved], delta.linears[name].values[~moved])
    stored.restore()
    assert torch.equal(module.weight, tuned)


def test_a_product_is_added_to_the_stored_weight(mlp):
    name, module = next((n, m) for n, m in mlp.named_modules() if isinstance(m, torch.nn.Linear))
    out, inputs = module.weight.shape
    base = module.weight.detach().clone()
    product = LowRankDelta(0.1 * torch.randn(2, inputs), 0.1 * torch.randn(out, 2), 1.0, "float32", digest(base))
    apply(mlp, Delta({}, low_rank={name: product}))
    stored = StoredBase(mlp, [f"{name}.weight"], StorageSettings())
    stored.read(CellFaults.uniform(0.0), generator())
    number = format_for("adaptive:8.3", base)
    kept = number.decode(number.encode(base.flatten())).view_as(base)
    assert torch.allclose(module.weight, kept + product.b @ product.a, atol=1e-6)


def test_entries_beside_a_product_are_values_of_their_own(mlp):
    support = te.select(mlp, rule="random", per_neuron=1)
    model = te.install(copy.deepcopy(mlp), support, trainable=[], form="sparse_plus_low_rank", rank=2)
    delta = te.extract(tiny.train(model, lr=0.3))
    name, base = "second", mlp.second.weight.detach().clone()
    apply(mlp, delta)
    tuned = mlp.second.weight.detach().clone()
    StoredBase(mlp, [f"{name}.weight"], StorageSettings()).read(CellFaults.uniform(0.0), generator())
    number = format_for("adaptive:8.3", base)
    kept = number.decode(number.encode(base.flatten())).view_as(base)
    expected = kept + (tuned - base)
    rows, columns = delta.linears[name].rows, delta.linears[name].columns
    expected[rows, columns] = tuned[rows, columns]
    assert torch.allclose(mlp.second.weight, expected, atol=1e-6)


def test_mask_and_values_have_faults_of_their_own(mlp):
    names = [name for name, parameter in mlp.named_parameters() if parameter.dim() > 1]
    total = sum(parameter.numel() for name, parameter in mlp.named_parameters() if name in names)
    faults = CellFaults.uniform(0.05)
    open_mask = StoredBase(mlp, names, StorageSettings("fixed:2.6", True)).read(faults, generator())
    assert open_mask.mask_cells == total
    assert open_mask.wrong_mask_cells > 0
    kept = StoredBase(mlp, names, StorageSettings("fixed:2.6", True, True))
    protected = kept.read(faults, generator())
    assert (protected.mask_cells, protected.wrong_mask_cells) == (open_mask.mask_cells, 0)
    assert protected.wrong_value_cells > 0
    assert protected.changed_values < open_mask.changed_values
    kept.restore()


def test_counts_of_cells_are_added():
    assert ReadCounts(1, 2, 3, 4, 5) + ReadCounts(10, 20, 30, 40, 50) == ReadCounts(11, 22, 33, 44, 55)


def test_draws_repeat_with_their_seed_and_the_model_is_restored():
    model = tiny.mlp()
    before = weights(model)
    stored = StoredBase(model, list(before), StorageSettings())
    seen = []

    def evaluate():
        seen.append(float(sum(parameter.detach().sum() for parameter in model.parameters())))
        return {"accuracy": seen[-1]}

    settings = [("0", CellFaults.uniform(0.0)), ("0.1", CellFaults.uniform(0.1))]
    rows = measure_faults(model, stored, settings, evaluate, seed=3, draws=2)
    assert [len(row["measures"]) for row in rows] == [1, 2]
    assert rows[1]["cell_fault_rate"] == pytest.approx(0.1)
    assert rows[1]["wrong_value_cells"] > 0
    assert seen[1] != seen[2]
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert measure_faults(model, stored, settings, evaluate, seed=3, draws=2) == rows


def test_weights_beyond_the_range_are_counted(mlp):
    with torch.no_grad():
        next(mlp.parameters()).view(-1)[:3] = 7.0
    names = list(weights(mlp))
    assert StoredBase(mlp, names, StorageSettings("fixed:2.6")).clipped_values() == 3
    assert StoredBase(mlp, names, StorageSettings("adaptive:8.3")).clipped_values() == 0


def test_a_parameter_that_the_model_lacks(mlp):
    with pytest.raises(InputError, match=r"no parameter 'absent\.weight'"):
        StoredBase(mlp, ["absent.weight"], StorageSettings())
