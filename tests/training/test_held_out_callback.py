"""The settings of a run make the callback, and its decision goes into the delta."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskedge.training.held_out_callback import held_out_callback, kept_values


def run(**config):
    said = []
    settings = SimpleNamespace(**{"eval_every": None, "early_stop": None, "keep": "last"} | config)
    return SimpleNamespace(config=settings, log=said.append, said=said)


def test_without_evaluations_there_is_no_callback_and_nothing_to_record(tmp_path):
    assert held_out_callback(run(), tmp_path) is None
    assert kept_values(run(), None, nn.Linear(1, 1)) == {}


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_best_values_are_restored_only_if_they_are_kept(keep):
    model = nn.Linear(1, 1, bias=False)
    entries = [{"held_out_loss": 0.5}, {"held_out_loss": 0.7}]

    def restore_best(model):
        with torch.no_grad():
            model.weight.fill_(3.0)
        return 4

    held_out = SimpleNamespace(best=entries[0], entries=entries, restore_best=restore_best)
    made, before = run(keep=keep), model.weight.detach().clone()
    found = kept_values(made, held_out, model)
    if keep == "best":
        assert found == {"kept_step": 4, "held_out_loss": 0.5}
        assert model.weight.item() == 3.0
        assert made.said == ["kept the values of step 4, held-out loss 0.5000"]
    else:
        assert found == {"held_out_loss": 0.7}
        assert torch.equal(model.weight, before)
        assert made.said == []
