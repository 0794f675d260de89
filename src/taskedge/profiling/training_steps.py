"""Training steps of a model down to a chosen depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from taskedge.backbone.blocks import blocks
from taskedge.backbone.cost_model import scalar_loss
from taskedge.errors import InputError

Step = Callable[[Mapping[str, Tensor]], None]


class DepthTraining:
    """Trains the trainable parameters of a model's blocks down to a depth.

    Parameters that require gradients at construction are trainable: the entries of an installed support, or all weights
    of a plain model. The loss is the mean square of the model's output, whose cost is negligible, as that of a small
    head.

    Args:
        model: a model with repeated blocks.
        trained: description of the trainable parameters, for the profile.

    Raises:
        InputError: the model has no repeated blocks, or a block without trainable parameters.
    """

    def __init__(self, model: nn.Module, trained: str) -> None:
        model_blocks = blocks(model)
        if not model_blocks:
            raise InputError(f"{type(model).__name__} has no repeated blocks, so there are no depths to measure")
        self._parameters: dict[int, list[nn.Parameter]] = {
            block.depth: [p for p in block.module.parameters() if p.requires_grad] for block in model_blocks
        }
        if not all(self._parameters.values()):
            depths = [depth for depth, parameters in self._parameters.items() if not parameters]
            raise InputError(f"nothing is trainable in the blocks at depth {depths}")
        self.model = model.requires_grad_(False).train()
        self.trained = trained
        self._optimizers: dict[int, torch.optim.Optimizer] = {}

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.model.parameters()).dtype

    def forward(self, inputs: Mapping[str, Tensor]) -> None:
        """Run a forward pass without gradients."""
        with torch.no_grad():
            scalar_loss(self.model(**inputs))

    @contextmanager
    def training_to(self, depth: int) -> Iterator[Step]:
        """Yield a function that takes one AdamW step on the blocks at depth <= ``depth``, within the context."""
        parameters = [p for block_depth, group in self._parameters.items() if block_depth <= depth for p in group]
        optimizer = self._optimizers.get(depth) or torch.optim.AdamW(parameters, lr=1e-6)
        self._optimizers[depth] = optimizer

        def step(inputs: Mapping[str, Tensor]) -> None:
            loss = scalar_loss(self.model(**inputs))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            yield step
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)

    def clear_optimizers(self) -> None:
        """Drop the state of the optimizers, so that a memory measurement includes the state for one depth only."""
        self._optimizers.clear()
