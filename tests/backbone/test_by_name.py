"""Modules and parameters by name, against torch's own walks."""

from __future__ import annotations

import torch
from torch import nn

from taskedge.backbone.by_name import modules_and_parameters, modules_named


def test_the_walk_finds_what_torch_finds_in_the_same_order() -> None:
    shared = nn.Linear(3, 3)
    inner = nn.Sequential(shared, nn.ReLU(), nn.Linear(3, 3, bias=False))
    tied = nn.Linear(3, 3)
    tied.weight = shared.weight
    model = nn.Sequential(inner, nn.ModuleDict({"again": shared, "tied": tied}), nn.LayerNorm(3))
    model.register_parameter("own", nn.Parameter(torch.zeros(2)))
    model.register_module("nothing", None)
    modules, parameters = modules_and_parameters(model)
    assert list(modules.items()) == list(model.named_modules())
    found, expected = list(parameters.items()), list(model.named_parameters())
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert all(a is b for (_, a), (_, b) in zip(found, expected, strict=True))


def test_modules_are_found_by_path_and_unknown_names_are_left_out() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
    found = modules_named(model, ["0.0", "", "1", "0.3", "2.weight", "0.0.weight"])
    assert found == {"0.0": model[0][0], "": model, "1": model[1]}  # type: ignore[index]
