import pytest
import tiny_fleet
import torch
from torch import nn

import taskedge as te
from taskedge.forms import row_gradients
from taskedge.forms.row_gradients import clipped_sum


def installed(step="activation", layers=2, **about):
    model = tiny_fleet.model(layers=layers, **about)
    batches = [tiny_fleet.collate(tiny_fleet.rows(8))]
    te.install(model, te.select(model, batches, per_neuron=2), step=step)
    return model.train()


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def brute_force(model, rows, parameters, clip):
    """Each row's gradient by autograd on a batch of one."""
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    losses, norms = [], []
    for row in rows:
        model.zero_grad()
        loss = model(**tiny_fleet.collate([row])).loss
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in parameters.values()]).norm()
        for name, p in parameters.items():
            total[name] += p.grad * min(1.0, clip / float(norm))
        losses.append(float(loss))
        norms.append(float(norm))
    model.zero_grad()
    return total, losses, norms


@pytest.mark.parametrize("step", ["activation", "plain"])
@pytest.mark.parametrize("clip", [0.1, 1.0, 1e9])
def test_the_sum_of_clipped_rows_equals_brute_force_in_one_pass(monkeypatch, step, clip):
    model, rows = installed(step), tiny_fleet.rows(7)
    total, losses, norms = brute_force(model, rows, trained(model), clip)
    monkeypatch.setattr(row_gradients, "_one_by_one", None)  # one pass must do
    found = clipped_sum(model, rows, tiny_fleet.collate, trained(model), clip)
    torch.testing.assert_close(found.losses, torch.tensor(losses), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norms[:, 0], torch.tensor(norms), rtol=1e-3, atol=1e-5)
    for name, expected in total.items():
        torch.testing.assert_close(found.total[name], expected, rtol=2e-3, atol=1e-5, msg=name)


def test_groups_are_clipped_each_on_its_own():
    model, rows = installed(), tiny_fleet.rows(5)
    parameters = trained(model)
    head = [name for name in parameters if "classifier" in name]
    rest = [name for name in parameters if name not in head]
    both = clipped_sum(model, rows, tiny_fleet.collate, parameters, 0.1, [head, rest])
    assert both.norms.shape == (5, 2)
    for group in (head, rest):
        alone = clipped_sum(model, rows, tiny_fleet.collate, {name: parameters[name] for name in group}, 0.1)
        for name in group:
            torch.testing.assert_close(both.total[name], alone.total[name], rtol=1e-4, atol=1e-6)


def test_products_in_parts_are_the_same(monkeypatch):
    model, rows = installed(), tiny_fleet.rows(7)
    whole = clipped_sum(model, rows, tiny_fleet.collate, trained(model), 0.1)
    monkeypatch.setattr(row_gradients, "_MAX_PRODUCTS", 200)
    parts = clipped_sum(model, rows, tiny_fleet.collate, trained(model), 0.1)
    for name, tensor in whole.total.items():
        torch.testing.assert_close(parts.total[name], tensor, rtol=1e-5, atol=1e-7)


def test_the_sum_without_clipping_is_the_gradient_of_the_batch():
    model, rows = installed(), tiny_fleet.rows(6)
    found = clipped_sum(model, rows, tiny_fleet.collate, trained(model), 1e9)
    model(**tiny_fleet.collate(rows)).loss.backward()
    for name, parameter in trained(model).items():
        torch.testing.assert_close(found.total[name] / 6, parameter.grad, rtol=1e-3, atol=1e-6)


class Odd(nn.Module):
    """Its loss is a mean over tokens, and it trains what is no linear."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.linear = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x, labels):
        logits = self.linear(self.scale * x)
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def test_other_parameters_and_losses_take_a_pass_for_each_row():
    model = Odd()
    draw = torch.Generator().manual_seed(1)
    rows = [(torch.randn(5, 4, generator=draw), torch.randint(3, (5,), generator=draw)) for _ in range(4)]

    def collate(chosen):
        return {"x": torch.stack([x for x, _ in chosen]), "labels": torch.stack([y for _, y in chosen])}

    found = clipped_sum(model, rows, collate, dict(model.named_parameters()), 0.5)

    def loss(values, x, y):
        return torch.func.functional_call(model, values, (x[None], y[None]))["loss"]

    values = {name: p.detach() for name, p in model.named_parameters()}
    x, y = collate(rows).values()
    per_row = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(values, x, y)
    norms = torch.stack([g.flatten(1).square().sum(1) for g in per_row.values()]).sum(0).sqrt()
    for name, gradient in per_row.items():
        expected = torch.tensordot((0.5 / norms).clamp_max(1), gradient, dims=1)
        torch.testing.assert_close(found.total[name], expected, rtol=1e-4, atol=1e-6)


def test_a_row_whose_gradient_is_not_finite_counts_as_nothing():
    model = Odd()
    rows = [(torch.full((2, 4), value), torch.tensor([0, 1])) for value in (float("nan"), 1.0)]

    def collate(chosen):
        return {"x": torch.stack([x for x, _ in chosen]), "labels": torch.stack([y for _, y in chosen])}

    both = clipped_sum(model, rows, collate, dict(model.named_parameters()), 1.0)
    alone = clipped_sum(model, rows[1:], collate, dict(model.named_parameters()), 1.0)
    assert all(torch.equal(both.total[name], alone.total[name]) for name in both.total)
