"""fp32 in a half-precision model: master weights, and modules that never change their dtype.

Parameters that train in full are kept in fp32 and used rounded. A step is often smaller than half a unit in the last
place of a bf16 weight and would be lost. So the parameter itself becomes fp32, and while its module runs, the module
sees it rounded to the dtype of the model. The trained model thus computes, to the bit, what a plain model in that dtype
computes with the rounded values.

Source: mixed precision training (arXiv 1710.03740, section 3.1) for the master copy; this project for its form.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Self

import torch
from torch import Tensor, nn

HALF_DTYPES = (torch.bfloat16, torch.float16)
_KEY = "_taskedge_masters"


def add_master_weights(model: nn.Module, names: Collection[str]) -> None:
    """Give the bf16 and fp16 parameters in ``names`` fp32 master weights; others stay as they are.

    :func:`remove_master_weights` undoes it.
    """
    parameters = dict(model.named_parameters())
    dtypes = {id(parameters[name]): parameters[name].dtype for name in names if parameters[name].dtype in HALF_DTYPES}
    for module in model.modules():  # a tied parameter has several owners
        owned = {name: dtypes[id(p)] for name, p in module._parameters.items() if p is not None and id(p) in dtypes}
        if owned:
            handles = (
                module.register_forward_pre_hook(_show_rounded),
                module.register_forward_hook(_show_master, always_call=True),
            )
            module.__dict__[_KEY] = owned, handles
    for parameter in parameters.values():
        if id(parameter) in dtypes:
            parameter.data = parameter.data.float()


def remove_master_weights(model: nn.Module) -> None:
    """Give every parameter its former dtype back, rounded from its master."""
    for module in model.modules():
        if _KEY in module.__dict__:
            owned, handles = module.__dict__.pop(_KEY)
            for handle in handles:
                handle.remove()
            for name, dtype in owned.items():
                parameter = module._parameters[name]
                assert parameter is not None
                parameter.data = parameter.data.to(dtype)


def _show_rounded(module: nn.Module, _args: Any) -> None:
    """Show the module a rounded copy under the parameter's name until its forward pass ends."""
    owned, _ = module.__dict__[_KEY]
    for name, dtype in owned.items():
        parameter = module._parameters[name]
        assert parameter is not None
        module.__dict__[name] = parameter.to(dtype)  # an instance's own dictionary is looked up first


def _show_master(module: nn.Module, _args: Any, _output: Any) -> None:
    owned, _ = module.__dict__[_KEY]
    for name in owned:
        module.__dict__.pop(name, None)


class FixedDtypeModule(nn.Module):
    """A module that moves between devices but never changes a dtype.

    Its trained numbers stay fp32 under ``model.to(torch.bfloat16)`` and ``model.half()``.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            return converted if converted.dtype == tensor.dtype else tensor.to(converted.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self
