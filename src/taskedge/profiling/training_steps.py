"""A model that can be trained down to a chosen depth, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from taskedge.backbone.blocks import blocks
from taskedge.backbone.cost_model import scalar
from taskedge.errors import InputError

Step = Callable[[Mapping[str, Tensor]], None]


class Training:
    """Trains what requires a gradient now in the model's blocks, but only in those down to a depth.

    ``what`` names that in the profile. With a support installed it is the entries; with a plain model every weight.
    The loss is the mean square of the model's output: its cost is nothing beside the blocks', as a small head's is.
    """

    def __init__(self, model: nn.Module, what: str) -> None:
        found = blocks(model)
        if not found:
            raise InputError(f"{type(model).__name__} has no repeated blocks, so there are no depths to measure")
        self._trained: dict[int, list[nn.Parameter]] = {
            block.depth: [p for p in block.module.parameters() if p.requires_grad] for block in found
        }
        if not all(self._trained.values()):
            depths = [depth for depth, parameters in self._trained.items() if not parameters]
            raise InputError(f"nothing is trainable in the blocks at depth {depths}")
        self.model, self.what, self.layers = model.requires_grad_(False).train(), what, len(found)
        self._optimisers: dict[int, torch.optim.Optimizer] = {}

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def forward(self, inputs: Mapping[str, Tensor]) -> None:
        """A forward pass that keeps nothing."""
        with torch.no_grad():
            scalar(self.model(**inputs))

    @contextmanager
    def reaching(self, depth: int) -> Iterator[Step]:
        """Within the block, the yielded function does one step (AdamW) of all blocks at depth <= ``depth``."""
        parameters = [p for at, group in self._trained.items() if at <= depth for p in group]
        optimiser = self._optimisers.get(depth) or torch.optim.AdamW(parameters, lr=1e-6)
        self._optimisers[depth] = optimiser

        def step(inputs: Mapping[str, Tensor]) -> None:
            loss = scalar(self.model(**inputs))
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            yield step
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)

    def forget(self) -> None:
        """Drops the optimisers' state, so that a measurement of memory holds that of one depth."""
        self._optimisers.clear()
