"""Modes return to what they were, batches reach the model in every form, and a missing loss is an error."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskedge.backbone.evaluation import evaluation_mode, loss_of, modes_restored, run_batch
from taskedge.errors import InputError


def mixed_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model.train()
    model[1].eval()
    return model


def modes(model):
    return [module.training for module in model.modules()]


def test_evaluation_mode_restores_the_mode_of_each_module():
    model = mixed_model()
    with evaluation_mode(model):
        assert modes(model) == [False, False, False]
    assert modes(model) == [True, True, False]


def test_modes_are_restored_after_an_error():
    model = mixed_model()

    def fail():
        with modes_restored(model):
            model.eval()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert modes(model) == [True, True, False]


class Add(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x, y=None, *, scale=1.0):
        return x * scale + (0 if y is None else y)


@pytest.mark.parametrize(
    "batch",
    [
        {"x": torch.ones(2), "y": torch.ones(2)},
        {"x": torch.ones(2), "scale": 2.0},
        (torch.ones(2), torch.ones(2)),
        [torch.ones(2), 1],
        torch.full((2,), 2.0),
    ],
)
def test_a_batch_is_a_mapping_a_sequence_or_a_tensor(batch):
    assert run_batch(Add(), batch).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "output", [{"loss": torch.tensor(3.0)}, SimpleNamespace(loss=torch.tensor([3.0])), torch.tensor(3.0)]
)
def test_the_loss_is_an_item_an_attribute_or_the_output(output):
    assert float(loss_of(output)) == 3.0


@pytest.mark.parametrize(
    "output", [{"logits": torch.zeros(2)}, SimpleNamespace(loss=None), SimpleNamespace(loss=torch.zeros(2)), None]
)
def test_an_output_without_a_scalar_loss_is_refused(output):
    with pytest.raises(InputError, match=r"returned no loss.*put labels into the batches"):
        loss_of(output)
