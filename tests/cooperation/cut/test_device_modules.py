"""What modules add, and their gradients: against dense autograd through the changed weight."""

from __future__ import annotations

import pytest
import tiny
import torch

from taskedge.cooperation.cut.device_modules import DeviceModules
from taskedge.forms.install import install
from taskedge.forms.low_rank import low_rank_layers
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.select import select
from taskedge.selection.support import Support

NAMES = [f"bert.encoder.layer.1.attention.self.{part}" for part in ("query", "value")]


def sparse(form="sparse", **options):
    model = tiny.bert()
    support = select(model, [tiny.batch(model)], budget="2%", max_columns=5, linears=NAMES)
    install(model, support, step="activation", form=form, **options)
    for layer in sparse_layers(model).values():
        for parameter in layer.entries.parameters():
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    shared = {name: linear.shared_input for name, linear in support.linears.items()}
    return model, DeviceModules(model, shared, lambda name: name)


@pytest.mark.parametrize("form", ["sparse", "sparse_lora"])
def test_entries_add_what_their_change_of_the_weight_adds(form):
    model, modules = sparse(form)
    (group,) = modules.begin(NAMES)
    x = torch.randn(7, 16)
    products = modules.products(0, group.gather(x), needs_input_gradient=True, trains=True)
    direction = torch.randn_like(products)
    added = modules.input_gradients(0, direction)
    modules.finish()
    parts = zip(group.modules, products.split(group.row_counts, 1), direction.split(group.row_counts, 1), strict=True)
    input_gradient = torch.zeros(7, 16)
    for module, product, gradient in parts:
        entries = sparse_layers(model)[module.name].entries
        offsets = entries.current_offsets().detach().requires_grad_()
        change = torch.zeros(module.shape).index_put((entries.rows, entries.columns), entries.step * offsets)
        (x @ change.t())[:, module.rows].backward(gradient)
        assert torch.allclose(product, (x @ change.t())[:, module.rows], atol=1e-5)
        input_gradient += torch.zeros(7, 16).index_add(0, torch.arange(7), gradient @ change[module.rows])
        if form == "sparse":
            assert torch.allclose(entries.offsets.grad, offsets.grad, atol=1e-5)
        else:
            assert all(float(parameter.grad.abs().max()) > 0 for parameter in modules.parameters_of(module.name))
    assert torch.allclose(added, input_gradient[:, group.columns].detach(), atol=1e-5)


def test_an_idle_module_gets_no_gradient_and_can_be_parked():
    model, modules = sparse()
    (group,) = modules.begin(NAMES[:1])
    modules.products(0, torch.randn(3, group.num_columns), needs_input_gradient=False, trains=True)
    assert modules.input_gradients(0, torch.randn(3, group.num_rows)) is None
    modules.finish()
    idle = sparse_layers(model)[NAMES[1]].entries
    assert idle.offsets.grad is None
    block = modules.parked(NAMES[1])["block"]
    dense = torch.zeros(16, 16).index_put((idle.rows, idle.columns), idle.values - idle.base).detach()
    module = modules.plan[NAMES[1]]
    assert torch.equal(block, dense[module.rows[:, None], module.columns])


def test_gradients_of_several_passes_add_up():
    model, modules = sparse()
    x, direction = torch.randn(3, 16), None
    totals = []
    for _ in range(2):
        (group,) = modules.begin(NAMES)
        products = modules.products(0, group.gather(x), needs_input_gradient=False, trains=True)
        direction = torch.ones_like(products)
        modules.input_gradients(0, direction)
        modules.finish()
        totals.append(sparse_layers(model)[NAMES[0]].entries.offsets.grad.clone())
    assert torch.allclose(totals[1], 2 * totals[0])


def test_a_pass_that_runs_again_counts_once():
    model, modules = sparse()
    x = torch.randn(3, 16)
    (group,) = modules.begin(NAMES)
    for _ in range(2):
        modules.products(0, group.gather(x), needs_input_gradient=False, trains=True)
        modules.input_gradients(0, torch.ones(3, group.num_rows))
    modules.finish()
    once = sparse_layers(model)[NAMES[0]].entries.offsets.grad.clone()
    model.zero_grad()
    modules.begin(NAMES)
    modules.products(0, group.gather(x), needs_input_gradient=False, trains=True)
    modules.input_gradients(0, torch.ones(3, group.num_rows))
    modules.finish()
    assert torch.equal(sparse_layers(model)[NAMES[0]].entries.offsets.grad, once)


def test_low_rank_products_read_and_change_everything():
    model = tiny.bert()
    support = Support({}, 1, low_rank=dict.fromkeys(NAMES, 2))
    install(model, support, seed=1)
    for layer in low_rank_layers(model).values():
        layer.product.b.data.normal_()
    modules = DeviceModules(model, dict.fromkeys(NAMES, NAMES[0]), lambda name: name)
    (group,) = modules.begin(NAMES)
    assert group.columns is None
    x = torch.randn(5, 16)
    products = modules.products(0, x.clone(), needs_input_gradient=True, trains=True)
    expected = torch.cat([layer.product(x) for layer in low_rank_layers(model).values()], 1)
    assert torch.equal(products, expected.detach())
    assert modules.input_gradients(0, torch.ones_like(products)).shape == (5, 16)
    parked = modules.parked(NAMES[0])
    product = low_rank_layers(model)[NAMES[0]].product
    assert torch.allclose(x @ (parked["b"] @ parked["a"]).t(), product(x), atol=1e-5)
