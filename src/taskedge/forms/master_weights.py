"""Masters in fp32: what trains whole in a half-precision model is kept in fp32, and used rounded.

A step is often smaller than half a unit in the last place of a bf16 weight, and would be lost. So the parameter itself
becomes fp32, and while its module runs, the module sees it rounded to the dtype that the model is in. What is trained
is thus what a plain model in that dtype computes once the rounded values are put into it, to the bit.

Source: mixed precision training (arXiv 1710.03740, section 3.1) for the master copy; the form is ours.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

HALF = (torch.bfloat16, torch.float16)
_KEY = "_taskedge_masters"


def hold(model: nn.Module, names: Collection[str]) -> None:
    """Makes those of the named parameters that are bf16 or fp16 masters in fp32. ``release`` is its mirror image."""
    parameters = dict(model.named_parameters())
    halves = {id(parameters[name]): parameters[name].dtype for name in names if parameters[name].dtype in HALF}
    for module in model.modules():  # a tied parameter has several owners
        own = {name: halves[id(p)] for name, p in module._parameters.items() if p is not None and id(p) in halves}
        if own:
            handles = (
                module.register_forward_pre_hook(_show_rounded),
                module.register_forward_hook(_show_master, always_call=True),
            )
            module.__dict__[_KEY] = own, handles
    for parameter in parameters.values():
        if id(parameter) in halves:
            parameter.data = parameter.data.float()


def release(model: nn.Module) -> None:
    """Gives every parameter the dtype that it had, rounded from its master."""
    for module in model.modules():
        if _KEY in module.__dict__:
            own, handles = module.__dict__.pop(_KEY)
            for handle in handles:
                handle.remove()
            for name, dtype in own.items():
                parameter = module._parameters[name]
                assert parameter is not None
                parameter.data = parameter.data.to(dtype)


def _show_rounded(module: nn.Module, _given: Any) -> None:
    """Until the forward pass of the module is over, it finds a rounded copy under the parameter's name."""
    own, _ = module.__dict__[_KEY]
    for name, dtype in own.items():
        parameter = module._parameters[name]
        assert parameter is not None
        module.__dict__[name] = parameter.to(dtype)  # what lies in an instance's own dictionary is found first


def _show_master(module: nn.Module, _given: Any, _output: Any) -> None:
    own, _ = module.__dict__[_KEY]
    for name in own:
        module.__dict__.pop(name, None)
