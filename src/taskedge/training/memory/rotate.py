"""Blocks in turn: for some steps only one block's entries train, and backpropagation ends at it.

One device does over time what a fleet does at once (LoLa DEFT, arXiv 2407.09873): each step pays for the depth of its
block only, and the deepest costs what a step of all blocks costs. Turns on one device are ours.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from taskedge.backbone.blocks import Block, blocks
from taskedge.errors import InputError


class Rotation:
    """Says whose turn it is: blocks with something to train, the one nearest the output first, then again.

    What trains outside the blocks (the head) trains in every turn. An optimiser that leaves parameters without gradient
    alone, as torch's do, keeps the state of the others as it was.

    Args:
        model: what is to train in it requires gradients now, in whatever form.
        steps: optimiser steps of one turn.

    Raises:
        InputError: fewer than two blocks have something to train.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        if steps < 1:
            raise InputError(f"rotate={steps}: a turn has 1 step or more")
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
                f"{type(model).__name__} has {len(self.blocks)} blocks with something to train, and turns need two: "
                "leave rotate at 0"
            )

    def begin(self, step: int) -> Block:
        """From now on only the block whose turn it is at optimiser step ``step`` (from 0) requires gradients."""
        turn = step // self.steps % len(self.blocks)
        for place, parameters in enumerate(self._trained):
            for parameter in parameters:
                parameter.requires_grad_(place == turn)
        return self.blocks[turn]

    def end(self) -> None:
        """All that trains at some time requires gradients again: so it is saved, counted and extracted."""
        for parameter in (parameter for parameters in self._trained for parameter in parameters):
            parameter.requires_grad_(True)


class Rotate(TrainerCallback):  # type: ignore[misc]
    """A :class:`Rotation` in the Trainer, by its count of steps, so that a resumed run goes on in the same turn."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self._rotation = Rotation(model, steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Before the first part of the step's batch."""
        self._rotation.begin(int(state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """After the optimiser, and before a checkpoint is written."""
        self._rotation.end()
