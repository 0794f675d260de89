"""A dense run equals plain full fine-tuning, and afterwards the model has its former bits."""

import copy

import pytest
import tiny
import torch

from taskedge.backbone.candidates import candidates, head_parameters
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.errors import InputError, TrainingDiverged
from taskedge.selection.select import select
from taskedge.training.dense_run import measure_changes
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

CONFIG = TrainerConfig(lr=1e-3, head_lr=1e-2, epochs=2, batch_size=4)


def rows_of(model, count=12):
    batch = tiny.batch(model, rows=count)
    return [{key: value[index] for key, value in batch.items()} for index in range(count)]


def collate(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def changes_of(model, config=CONFIG, log=lambda _: None, **settings):
    rows = rows_of(model)
    return measure_changes(
        model, [collate(rows[:4])], rows, collate, config, head=head_parameters(model), log=log, **settings
    )


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_changes_are_those_of_plain_fine_tuning_and_the_model_is_the_same_again(architecture, tmp_path):
    model = tiny.MODELS[architecture](dropout=0.1) if architecture == "bert" else tiny.gpt2()
    model.train()
    plain, before = copy.deepcopy(model), tiny.state(model)
    asked = [parameter.requires_grad for parameter in model.parameters()]
    with changes_of(model) as statistics:
        assert tiny.same_bits(model.state_dict(), before)
        assert model.training
        assert [parameter.requires_grad for parameter in model.parameters()] == asked
        assert all(parameter.grad is None for parameter in model.parameters())
        support = select(model, statistics=statistics, rule="change", per_neuron=2)
        head = head_parameters(model)
        trained = {linear.parameter for linear in candidates(plain).values()} | set(head)
        for name, parameter in plain.named_parameters():
            parameter.requires_grad_(name in trained)
        start = {name: linear.weight.clone() for name, linear in candidates(plain).items()}
        train(plain, rows_of(model), collate, CONFIG, tmp_path, progress=False, head=head)
        for name, linear in candidates(plain).items():
            change = linear.weight - start[name]
            assert bool((change != 0).any())
            assert torch.equal(statistics[name].change, change)
            chosen = change.abs()[support.linears[name].rows, support.linears[name].columns]
            assert torch.equal(chosen.view(-1, 2).sort(1, descending=True).values, change.abs().topk(2, dim=1).values)
    assert (support.rule, support.linears[name].input_rms is None) == ("change", False)


def test_a_half_precision_model_changes_by_less_than_its_precision(bert):
    model = bert.bfloat16()
    before = tiny.state(model)
    with changes_of(model, CONFIG.model_copy(update={"lr": 1e-6})) as statistics:
        assert tiny.same_bits(model.state_dict(), before)
        for linear in statistics.values():
            assert 0 < linear.change.abs().max() < 1e-4


def test_what_it_needs_is_said_before_and_what_it_took_after(bert):
    lines = []
    with changes_of(bert, log=lines.append) as statistics:
        weights = sum(linear.shape[0] * linear.shape[1] for linear in candidates(bert).values())
    head = sum(dict(bert.named_parameters())[name].numel() for name in head_parameters(bert))
    assert lines[0].startswith(f"the dense run trains {weights + head:,} weights of {len(statistics)} linears")
    assert "6 steps, about" in lines[0]
    assert "for gradients, optimizer and a copy of the weights" in lines[0]
    assert "for activations" in lines[0]
    assert lines[1].startswith("the dense run took")


def test_only_blocks_near_the_output_are_trained_if_entries_stay_there(bert):
    with changes_of(bert, depth=1) as statistics:
        assert set(statistics) == {name for name in candidates(bert) if "layer.1." in name}


def test_a_run_that_diverges_says_so_and_leaves_the_model_as_it_was(bert):
    before = tiny.state(bert)
    with pytest.raises(TrainingDiverged, match="in the dense run of the rule 'change', the loss is"):
        changes_of(bert, CONFIG.model_copy(update={"lr": 1e30, "warmup": 0.0}))
    assert tiny.same_bits(bert.state_dict(), before)
    assert all(parameter.requires_grad for parameter in bert.parameters())


def test_read_only_weights_are_refused(bert):
    with pytest.raises(InputError, match=r"read-only .* so it cannot train in a dense run: choose another rule"):
        changes_of(set_weight_storage(bert, "int8"))
