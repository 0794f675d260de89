"""What a model trains, cut into blocks by depth: what a plan hands out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from taskedge.backbone.blocks import blocks
from taskedge.errors import InputError

HEAD = 0
"""The block that is nearest of all to the loss: what trains behind the repeated layers."""


@dataclass(frozen=True)
class TrainedBlocks:
    """Names of the trained parameters by block: ``[0]`` the head, ``[b]`` the block at depth b (1: nearest the loss).

    The parameters are those that require a gradient: entries' offsets, and what trains whole. What lies before the
    repeated layers (embeddings) belongs to the deepest block, since its gradient must pass all of them; what lies
    behind them is the head. A head costs next to nothing to train, so no plan places it: it rides along.
    """

    names: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        """How many blocks there are, the head not counted."""
        return len(self.names) - 1

    def of(self, chosen: Iterable[int]) -> list[str]:
        """The names in these blocks, in a fixed order."""
        return [name for block in sorted(set(chosen)) for name in self.names[block]]

    def only(self, chosen: Collection[str]) -> TrainedBlocks:
        """The same blocks with these names alone, and the head."""
        kept = (tuple(name for name in names if name in chosen) for names in self.names[1:])
        return TrainedBlocks((self.names[HEAD], *kept))

    def block_of(self) -> dict[str, int]:
        """The block of every name."""
        return {name: block for block, names in enumerate(self.names) for name in names}


def trained_blocks(model: nn.Module, sizes: Sequence[int] | None = None) -> TrainedBlocks:
    """Groups the parameters of ``model`` that require a gradient now.

    Args:
        model: with repeated layers, and a support installed.
        sizes: how many neighbouring layers each block holds, nearest the loss first; None: one each.

    Raises:
        InputError: the model has no repeated layers, or ``sizes`` do not add up to them.
    """
    layers = sorted(blocks(model), key=lambda layer: layer.depth)
    if not layers:
        raise InputError(f"{type(model).__name__} has no repeated layers that could be handed out to devices")
    sizes = [1] * len(layers) if sizes is None else sizes
    if sum(sizes) != len(layers) or min(sizes) < 1:
        raise InputError(f"blocks of {list(sizes)} layers do not make up the model's {len(layers)}")
    block_at_depth = [block for block, size in enumerate(sizes, start=1) for _ in range(size)]
    found: list[list[str]] = [[] for _ in range(len(sizes) + 1)]
    entered = False
    for name, parameter in model.named_parameters():
        inside = next((layer for layer in layers if name.startswith(f"{layer.name}.")), None)
        entered = entered or inside is not None
        if not parameter.requires_grad:
            continue
        block = block_at_depth[inside.depth - 1] if inside else HEAD if entered else len(sizes)
        found[block].append(name)
    return TrainedBlocks(tuple(tuple(names) for names in found))
