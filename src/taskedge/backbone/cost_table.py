"""The block table: the costs of each trainable block of a model, as arrays. Imports no torch, for the planner.

In all arrays, entry b belongs to the block at depth b + 1, counted from the output: the device that trains it must
backpropagate through entries 0 .. b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BlockTable:
    """Costs of a model's L blocks and of the rest of the model.

    Attributes:
        layers: names of the layers of each block, nearest the loss first.
        parameters: [L] parameters of the block.
        forward_flops, backward_flops: [L] FLOPs per token; backward is the gradient towards the block's input
            (``dY·W`` and attention). The gradient of the few chosen entries, about 4 %, is not counted.
        activation_bytes: [L] bytes per token kept for the backward pass through the block.
        input_bytes: [L] further bytes per token that training the block may keep: the inputs of its linears. An
            upper bound, since sparse training keeps only the columns that some neuron uses.
        boundary_bytes: [L] bytes per token of the tensors between the block's layers, which checkpointing keeps.
        payload_values: [L] trained values of the block at the budget, which a device uploads.
        other_forward_flops: FLOPs per token outside the blocks (pooler, head).
        base_bytes: bytes of all weights of the model.
        sequence_tokens: the length at which per-token figures were counted (attention grows with it).
        model, digest: the name, and the fingerprint of the shape (:func:`taskedge.backbone.cost_model.shape_digest`).
    """

    layers: tuple[tuple[str, ...], ...]
    parameters: Floats
    forward_flops: Floats
    backward_flops: Floats
    activation_bytes: Floats
    input_bytes: Floats
    boundary_bytes: Floats
    payload_values: Floats
    other_forward_flops: float
    base_bytes: float
    sequence_tokens: int
    model: str
    digest: str

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def deepest_layer(self) -> NDArray[np.int64]:
        """[L] depth in layers (from 1) that training each block reaches; a block may consist of several layers."""
        return np.cumsum(self.layers_per_block)

    @property
    def layers_per_block(self) -> NDArray[np.int64]:
        """[L] number of layers of each block."""
        return np.array([len(names) for names in self.layers], dtype=np.int64)

    def merged(self, sizes: list[int]) -> BlockTable:
        """Return the table with neighboring blocks joined, ``sizes[i]`` at a time, nearest the loss first."""
        starts = np.cumsum([0, *sizes[:-1]])
        joined: dict[str, Any] = {
            key: np.add.reduceat(getattr(self, key), starts)
            for key in (
                "parameters",
                "forward_flops",
                "backward_flops",
                "activation_bytes",
                "input_bytes",
                "boundary_bytes",
                "payload_values",
            )
        }
        layers = tuple(
            tuple(name for names in self.layers[start : start + size] for name in names)
            for start, size in zip(starts, sizes, strict=True)
        )
        return BlockTable(
            layers=layers,
            other_forward_flops=self.other_forward_flops,
            base_bytes=self.base_bytes,
            sequence_tokens=self.sequence_tokens,
            model=self.model,
            digest=self.digest,
            **joined,
        )
