"""Groups, decay and rates of the optimizer are those of transformers."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
import transformers

import taskedge as te
from taskedge.training.optimizer import learning_rate_factor, make_optimizer
from taskedge.training.trainer_config import TrainerConfig


@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.3, 0.99])
def test_the_learning_rate_is_that_of_the_linear_schedule(warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, math.ceil(40 * warmup), 40)
    for step in range(41):
        assert learning_rate_factor(step, 40, warmup) == schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.vit, tiny.t5], ids=lambda make: make.__name__)
def test_biases_and_norms_have_no_weight_decay(make):
    made = make()
    for parameter in made.parameters():
        parameter.requires_grad_(True)
    optimizer = make_optimizer(made, TrainerConfig(weight_decay=0.1), ())
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = transformers.Trainer.get_decay_parameter_names(None, made)
    assert decayed == {id(parameter) for name, parameter in made.named_parameters() if name in names}


def test_products_beside_entries_have_a_relative_rate():
    made = tiny.bert()
    te.install(made, te.select(made, rule="magnitude", per_neuron=1), form="sparse_plus_low_rank", rank=2)
    head = {name for name, _ in made.named_parameters() if name.startswith("classifier.")}
    groups = make_optimizer(made, TrainerConfig(lr=0.5, head_lr=0.25, weight_decay=0.1), head).param_groups
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(settings)
    for name, parameter in made.named_parameters():
        if parameter.requires_grad and name not in head:
            assert settings[id(parameter)] == ((0.05, 0.1) if ".product." in name else (0.5, 0.1))
    by_mezo = make_optimizer(made, TrainerConfig(lr=0.5, optimizer="mezo"), head).param_groups
    assert len({id(p) for group in by_mezo for p in group["params"]}) == len(settings)  # at one rate


def test_the_head_has_groups_of_its_own_if_its_rate_is_set():
    made = tiny.bert()
    te.install(made, te.select(made, rule="magnitude", per_neuron=1))
    head = {name for name, _ in made.named_parameters() if name.startswith("classifier.")}
    rates = {}
    for config in (TrainerConfig(lr=0.5), TrainerConfig(lr=0.5, head_lr=0.25)):
        groups = make_optimizer(made, config, head).param_groups
        rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        for name, parameter in made.named_parameters():
            if parameter.requires_grad:
                assert rates[id(parameter)] == (config.head_lr if config.head_lr and name in head else config.lr)
