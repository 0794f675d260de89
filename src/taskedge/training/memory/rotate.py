"""Block rotation on one device: for some steps only one block trains, and backpropagation ends at it.

Each step pays for the depth of its block only; the deepest block costs as much as a step that trains all blocks.

Source: LoLa DEFT (arXiv 2407.09873) trains the blocks at once on different devices. Rotation on one device: this
project.
"""

from __future__ import annotations

from torch import nn

from taskedge.backbone.blocks import Block, blocks
from taskedge.errors import InputError
from taskedge.training.callbacks import Callback, TrainState


class Rotation:
    """Selects the block that trains: blocks with trainable parameters, nearest the output first, in a cycle.

    Trainable parameters outside the blocks (the head) train in every step. Torch optimizers skip parameters without
    gradient, so the optimizer state of inactive blocks, including step counts, is left unchanged.

    Args:
        model: its trainable parameters, in whatever form, require gradients now.
        steps: optimizer steps for which one block trains.

    Attributes:
        blocks: the blocks of the cycle, in order.

    Raises:
        InputError: fewer than two blocks have trainable parameters, or ``steps`` is below 1.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        if steps < 1:
            raise InputError(f"turns of {steps} steps: a turn has 1 step or more")
        self.steps = steps
        self.blocks: list[Block] = []
        self._trained: list[list[nn.Parameter]] = []
        for block in sorted(blocks(model), key=lambda block: block.depth):
            trained = [parameter for parameter in block.module.parameters() if parameter.requires_grad]
            if trained:
                self.blocks.append(block)
                self._trained.append(trained)
        if len(self.blocks) < 2:
            raise InputError(
                f"{type(model).__name__} has {len(self.blocks)} blocks with something to train, and rotation needs "
                "two: leave rotate at 0"
            )

    def begin(self, step: int) -> Block:
        """Make only the block of optimizer step ``step`` (from 0) require gradients, and return it."""
        active = step // self.steps % len(self.blocks)
        for index, parameters in enumerate(self._trained):
            for parameter in parameters:
                parameter.requires_grad_(index == active)
        return self.blocks[active]

    def end(self) -> None:
        """Make the parameters of all blocks require gradients again, so that they are saved, counted and extracted."""
        for parameters in self._trained:
            for parameter in parameters:
                parameter.requires_grad_(True)


class RotationCallback(Callback):
    """Rotates blocks by the step count of the training loop, so that a resumed run continues the cycle.

    Args:
        model: see :class:`Rotation`.
        steps: optimizer steps for which one block trains.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self._rotation = Rotation(model, steps)

    def on_step_begin(self, state: TrainState) -> None:
        """Activate one block before the first pass of a step."""
        self._rotation.begin(state.step)

    def on_step_end(self, state: TrainState) -> None:
        """Activate all blocks after the optimizer, before a checkpoint is written."""
        self._rotation.end()

    def on_train_end(self) -> None:
        """Activate all blocks, also after an error within a step."""
        self._rotation.end()
