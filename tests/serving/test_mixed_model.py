"""Rows of different tasks in one forward pass, on plain modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from taskedge.backbone.layers import as_linear
from taskedge.delta.delta import LinearDelta
from taskedge.serving.mixed_model import MixedModel, NotRowByRow
from taskedge.serving.task_table import TaskTable, entry_table


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.norm, self.head = nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.norm(torch.tanh(self.body(x))))


def table_of(model, seed, width):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(30, generator=generator)[:7].sort().values
    linear = LinearDelta((5, 6), flat // 6, flat % 6, torch.randn(7, generator=generator), "float32", "")
    head = {"weight": torch.randn(width, 5, generator=generator), "bias": torch.randn(width, generator=generator)}
    norm = {"weight": torch.randn(5, generator=generator)}
    changed = Net()
    with torch.no_grad():
        changed.body.weight[linear.rows, linear.columns] = linear.values
        changed.norm.weight.copy_(norm["weight"])
    changed.head = nn.Linear(5, width)
    changed.head.load_state_dict(head)
    return TaskTable(
        {"body": entry_table(as_linear("body", model.body), linear)}, {"head": head, "norm": norm}
    ), changed


@torch.no_grad()
def test_each_row_has_the_answer_of_its_task():
    model, x = Net(), torch.randn(6, 3, 6)
    (one, first), (other, second) = table_of(model, 1, 4), table_of(model, 2, 3)
    mixed = MixedModel(model)
    with mixed.rows([one, None, other, one, other, None]):
        y = model(x)
    assert y.shape == (6, 3, 4)
    plain = Net()
    for row, changed in enumerate([first, plain, second, first, second, plain]):
        truth = changed(x[row])
        assert torch.allclose(y[row, :, : truth.shape[-1]], truth, atol=1e-6)
        assert not y[row, :, truth.shape[-1] :].any()
    assert torch.equal(model(x), plain(x))  # without a batch it is the base again


@torch.no_grad()
def test_rows_may_lie_flat_one_after_the_other():
    model, x = Net(), torch.randn(4, 3, 6)
    table, changed = table_of(model, 1, 2)
    with MixedModel(model).rows([None, table, None, table]):
        y = model(x.flatten(0, 1)).view(4, 3, 2)
    assert torch.allclose(y[[1, 3]], changed(x[[1, 3]]), atol=1e-6)
    assert torch.allclose(y[[0, 2]], Net()(x[[0, 2]]), atol=1e-6)


@torch.no_grad()
def test_an_input_without_the_rows_is_an_error():
    model = Net()
    table, _ = table_of(model, 1, 2)
    mixed = MixedModel(model)
    refused = pytest.raises(NotRowByRow, match=r"layer 'body' reads \[1, 4, 6\], which does not hold 3 rows")
    with refused, mixed.rows([table, None, None]):
        model(torch.randn(1, 4, 6))
    assert torch.equal(model(torch.ones(1, 6)), Net()(torch.ones(1, 6)))
