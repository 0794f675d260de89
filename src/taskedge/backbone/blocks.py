"""The repeated blocks of a model: its transformer layers, found by structure and not by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from taskedge.errors import InputError


@dataclass(frozen=True)
class Block:
    """One repeated layer of a model.

    Attributes:
        name: of the module in the model.
        module: the layer.
        depth: counted from the output; depth 1 is the block nearest the loss.
    """

    name: str
    module: nn.Module
    depth: int


def blocks(model: nn.Module) -> list[Block]:
    """Return the model's repeated layers in the order of its modules, input side first.

    A repeated layer is a member of an outermost ``nn.ModuleList`` or ``nn.Sequential`` of two or more modules of
    one class that have submodules. A model without such a list (ALBERT, a plain MLP) has no blocks.
    """
    members = list(_members(model, ""))
    return [Block(name, module, depth=len(members) - i) for i, (name, module) in enumerate(members)]


def blocks_within(model: nn.Module, depth: int) -> list[Block]:
    """Return the ``depth`` blocks nearest the output, input side first; training only these backpropagates no further.

    Raises:
        InputError: the model has no repeated blocks, or fewer than ``depth``; a depth below 1.
    """
    every = blocks(model)
    if not every:
        raise InputError(f"{type(model).__name__} has no repeated blocks to count depth in: leave it out")
    if not 1 <= depth <= len(every):
        raise InputError(f"depth {depth}: {type(model).__name__} has {len(every)} blocks: give 1 to {len(every)}")
    return every[len(every) - depth :]


def _members(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if _is_repeated(child):
            yield from ((f"{path}.{index}", member) for index, member in child.named_children())
        else:
            yield from _members(child, f"{path}.")


def _is_repeated(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
        return False
    members = list(module)
    return len({type(member) for member in members}) == 1 and any(True for _ in members[0].children())
