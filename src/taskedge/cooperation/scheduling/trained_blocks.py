"""The trained parameters of a model, grouped into blocks by depth: the units that a plan assigns to devices."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from taskedge.backbone.blocks import blocks
from taskedge.errors import InputError

HEAD = 0
"""The block nearest to the loss: the parameters behind the repeated layers."""


@dataclass(frozen=True)
class TrainedBlocks:
    """Names of the trained parameters by block: ``[0]`` the head, ``[b]`` the block at depth b (1: nearest the loss).

    The parameters are those that require a gradient: offsets of entries, and full parameters. Those before the repeated
    layers (embeddings) belong to the deepest block, since their gradient must pass all layers. Those behind the layers
    are the head. A head costs next to nothing to train, so no plan places it: it comes with every task.
    """

    names: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        """Return the number of blocks, without the head."""
        return len(self.names) - 1

    def names_in(self, chosen: Iterable[int]) -> list[str]:
        """Return the names in these blocks, in a fixed order."""
        return [name for block in sorted(set(chosen)) for name in self.names[block]]

    def restricted_to(self, chosen: Collection[str]) -> TrainedBlocks:
        """Return the same blocks with only these names, and the whole head."""
        kept = (tuple(name for name in names if name in chosen) for names in self.names[1:])
        return TrainedBlocks((self.names[HEAD], *kept))

    def block_of(self) -> dict[str, int]:
        """Return the block of every name."""
        return {name: block for block, names in enumerate(self.names) for name in names}


def trained_blocks(model: nn.Module, sizes: Sequence[int] | None = None) -> TrainedBlocks:
    """Group the parameters of ``model`` that require a gradient.

    Args:
        model: A model with repeated layers and an installed support.
        sizes: Number of neighboring layers in each block, nearest the loss first; None: one each.

    Raises:
        InputError: The model has no repeated layers, or ``sizes`` do not add up to them.
    """
    layers = sorted(blocks(model), key=lambda layer: layer.depth)
    if not layers:
        raise InputError(f"{type(model).__name__} has no repeated layers that could be handed out to devices")
    sizes = [1] * len(layers) if sizes is None else sizes
    if sum(sizes) != len(layers) or min(sizes) < 1:
        raise InputError(f"blocks of {list(sizes)} layers do not make up the model's {len(layers)}")
    block_at_depth = [block for block, size in enumerate(sizes, start=1) for _ in range(size)]
    names_by_block: list[list[str]] = [[] for _ in range(len(sizes) + 1)]
    past_first_layer = False
    for name, parameter in model.named_parameters():
        layer = next((layer for layer in layers if name.startswith(f"{layer.name}.")), None)
        past_first_layer = past_first_layer or layer is not None
        if not parameter.requires_grad:
            continue
        if layer is not None:
            block = block_at_depth[layer.depth - 1]
        elif past_first_layer:
            block = HEAD
        else:
            block = len(sizes)
        names_by_block[block].append(name)
    return TrainedBlocks(tuple(tuple(names) for names in names_by_block))
