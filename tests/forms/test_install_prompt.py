"""A soft prompt trains alone: what requires gradients, what is refused."""

from __future__ import annotations

import pytest
import torch
from causal_models import causal_model

from taskedge.errors import InputError
from taskedge.forms.install import fuse, installation
from taskedge.forms.install_prompt import install_prompt, prompt_support
from taskedge.forms.prompt import PromptLayout, attach_prompt, remove_prompt
from taskedge.training.optimizer import make_optimizer
from taskedge.training.trainer_config import TrainerConfig


def prompted(length=2, segments=True):
    model = causal_model("llama")
    layout = PromptLayout(("a",), length, 61, segments=segments)
    attach_prompt(model, layout, torch.ones(1, length, 16), torch.zeros(3, 16) if segments else None)
    return model


def test_only_the_prompt_trains_and_without_decay():
    model = prompted()
    support = prompt_support(model)
    assert support.model_parameters == sum(p.numel() for p in causal_model("llama").parameters())
    install_prompt(model, support, trainable=[])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"model.embed_tokens.soft_prompt.{name}" for name in ("tokens", "segments")}
    groups = make_optimizer(model, TrainerConfig(lr=0.1), ()).param_groups
    assert {group["weight_decay"] for group in groups if group["params"]} == {0.0}
    with pytest.raises(InputError, match="a soft prompt is an input beside the text"):
        fuse(model)
    remove_prompt(model)
    fuse(model)
    assert installation(model) is None
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_refusals():
    model = causal_model("llama")
    with pytest.raises(InputError, match="has no soft prompt to train"):
        install_prompt(model, prompt_support(model), trainable=[])
    model = prompted(length=0, segments=False)
    with pytest.raises(InputError, match="no soft tokens and no segments"):
        install_prompt(model, prompt_support(model), trainable=[])
    model = prompted()
    install_prompt(model, prompt_support(model), trainable=[])
    with pytest.raises(InputError, match="already trains"):
        install_prompt(model, prompt_support(model), trainable=[])
