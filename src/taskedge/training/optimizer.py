"""The optimizer of a run: groups of parameters with their rates and decay, and the schedule of the rate."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from taskedge.forms.low_rank import relative_rates
from taskedge.forms.taps import layer_gates
from taskedge.training.memory.mezo import Mezo, downstream_names
from taskedge.training.trainer_config import HEAD_LEARNING_RATE, TrainerConfig

_WITHOUT_DECAY = re.compile(r"bias|soft_prompt|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""Names, in lower case, of parameters without weight decay, besides those of ``nn.LayerNorm``: soft prompts too."""


def make_optimizer(model: nn.Module, config: TrainerConfig, head: Collection[str]) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters that require gradients, in groups with their peak learning rates.

    Biases and parameters of norms have no weight decay. Scores of gates on layers have none either, and a rate of their
    own (:mod:`taskedge.forms.taps`). Products beside entries have a rate relative to that of the body
    (:mod:`taskedge.forms.sparse_plus_low_rank`).

    Args:
        model: the model to train.
        config: settings of the run.
        head: names of the fully trained parameters. They have groups of their own if ``config.head_lr`` is set. With
            MeZO, those of them that lie downstream of every sparse entry always have, since gradients train them.
    """
    is_mezo = config.optimizer == "mezo"
    head_lr = config.head_lr
    if is_mezo:
        head = downstream_names(model, head)
        if head_lr is None:
            head_lr = HEAD_LEARNING_RATE
    elif head_lr is None:
        head = ()
    relative = {} if is_mezo else relative_rates(model)
    gates = {id(gate.score): gate.rate for gate in layer_gates(model).values()}
    trained = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in gates and id(parameter) not in relative
    }
    undecayed = _undecayed_names(model)
    groups: list[dict[str, Any]] = []
    for is_head, lr in ((False, config.lr), (True, head_lr)):
        if lr is None:  # the head trains like the rest
            continue
        names = [name for name in trained if (name in head) == is_head]
        with_decay = [trained[name] for name in names if name not in undecayed]
        without_decay = [trained[name] for name in names if name in undecayed]
        for parameters, weight_decay in ((with_decay, config.weight_decay), (without_decay, 0.0)):
            groups.append({"params": parameters, "lr": lr, "initial_lr": lr, "weight_decay": weight_decay})
            if is_mezo:
                groups[-1]["exact"] = is_head
    if is_mezo:
        groups = [group for group in groups if group["params"]]
        return Mezo(groups, config.lr, perturbation=config.perturbation, seed=config.seed)
    for factor in sorted(set(relative.values())):
        lr = config.lr * factor
        factors = [p for p in model.parameters() if relative.get(id(p)) == factor and p.requires_grad]
        groups.append({"params": factors, "lr": lr, "initial_lr": lr, "weight_decay": config.weight_decay})
    for rate in sorted(set(gates.values())):
        scores = [gate.score for gate in layer_gates(model).values() if gate.rate == rate]
        groups.append({"params": scores, "lr": rate, "initial_lr": rate, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, fused=True)


def learning_rate_factor(step: int, max_steps: int, warmup: float) -> float:
    """Return the learning rate of a step (from 0), relative to its peak: a linear rise from 0, then a linear fall to 0.

    Args:
        step: optimizer steps done.
        max_steps: optimizer steps of the whole run.
        warmup: share of them with a rising rate.
    """
    warmup_steps = math.ceil(max_steps * warmup)
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))


def _undecayed_names(model: nn.Module) -> set[str]:
    """Return the names of parameters without weight decay, which are also those that the Trainer leaves out."""
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    in_norms = {f"{norm}.{name}" for norm in norms for name, _ in model.get_submodule(norm).named_parameters()}
    return in_norms | {name for name, _ in model.named_parameters() if _WITHOUT_DECAY.search(name.lower())}
