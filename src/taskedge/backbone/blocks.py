"""The repeated blocks of a model: its transformer layers, found by shape and not by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from taskedge.errors import InputError


@dataclass(frozen=True)
class Block:
    """One repeated layer. ``depth`` counts from the output: depth 1 is the block nearest the loss."""

    name: str
    module: nn.Module
    depth: int


def blocks(model: nn.Module) -> list[Block]:
    """The model's repeated layers in the order of its modules, input side first.

    A repeated layer is a member of an outermost ``nn.ModuleList`` or ``nn.Sequential`` of two or more modules of
    one class that have modules of their own. A model without such a list (ALBERT, a plain MLP) has no blocks.
    """
    found = list(_members(model, ""))
    return [Block(name, module, depth=len(found) - place) for place, (name, module) in enumerate(found)]


def blocks_within(model: nn.Module, depth: int) -> list[Block]:
    """The ``depth`` blocks nearest the output, input side first: backpropagation that trains only these ends there.

    Raises:
        InputError: the model has no repeated blocks, or fewer than ``depth``; a depth below 1.
    """
    found = blocks(model)
    if not found:
        raise InputError(f"{type(model).__name__} has no repeated blocks to count depth in: leave it out")
    if not 1 <= depth <= len(found):
        raise InputError(f"depth={depth}: {type(model).__name__} has {len(found)} blocks: give 1 to {len(found)}")
    return found[len(found) - depth :]


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
